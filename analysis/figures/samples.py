"""What the arms draw: a row of final pictures per arm, the same prompts and noise in every column."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from analysis.figures import layout
from analysis.figures.axis import wrap
from analysis.io.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
SIDE = 256  # pixels that a tile is enlarged to at least, so that a viewer doesn't blur it
MOST = 8  # rows of a search: its best trials
LEFT = 1.05  # inches of the rows' names
INCH = (layout.WIDTH - LEFT) / COLUMNS  # of a tile


def sample_figure(results: Results) -> Figure | None:
    """Final pictures of each arm at its first seed, captions below the columns; None where no run has any.

    Of a search the best trials alone.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {}
    for run in _first(results).itertuples():
        found = results.samples(str(run.run_id))
        if found is not None:
            rows[f"{wrap(str(run.arm), 17)}\nseed {run.seed}"] = found
    if not rows:
        return None
    prompts = next(iter(rows.values()))[1][:COLUMNS]
    columns = len(prompts)
    captions = [textwrap.wrap(prompt, 15) for prompt in prompts]
    left, below = LEFT, 0.12 * max(len(lines) for lines in captions) + 0.1
    width = left + INCH * columns
    title = textwrap.wrap(_title(results), int(16.5 * width))
    above = 0.13 + 0.13 * len(title)
    height = above + INCH * len(rows) + below
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for number, (label, (pictures, own)) in enumerate(rows.items()):
        bottom = below + INCH * (len(rows) - 1 - number)
        figure.text((left - 0.1) / width, (bottom + INCH / 2) / height, label, ha="right", va="center", fontsize=7)
        for column, picture in enumerate(pictures[:columns]):
            if own[column] != prompts[column]:
                continue  # another prompt than the column's: an empty place is better than a wrong caption
            place = (left + INCH * column) / width, bottom / height, 0.96 * INCH / width, 0.96 * INCH / height
            axis = figure.add_axes(place)
            axis.imshow(enlarge(picture), interpolation="lanczos")
            axis.set_axis_off()
    for column, lines in enumerate(captions):
        x = (left + INCH * (column + 0.48)) / width
        figure.text(x, (below - 0.06) / height, "\n".join(lines), ha="center", va="top", fontsize=6)
    figure.text(0.1 / width, 1 - 0.08 / height, "\n".join(title), ha="left", va="top", fontsize=7.5)
    return figure


def _title(results: Results) -> str:
    study = results.study
    who = f"the best trials of {study.name}" if study.search else study.name
    each = "trial" if study.search else "arm"
    which = "" if study.search else layout.select_arms(results)[1]
    return f"{who}, scale {study.scale}: same prompts and noise for every {each}. {which}".removesuffix(". ")


def _first(results: Results) -> pd.DataFrame:
    """The run of each row: an arm's first seed, of many arms the best; of a search the best trials, best first."""
    first = results.frame.drop_duplicates("arm")
    if not results.study.search:
        return first[first["arm"].isin(layout.select_arms(results)[0])]
    rising = results.study.direction == "minimize"
    return first.sort_values(f"final/{results.study.primary}", ascending=rising).head(MOST)


def enlarge(picture: np.ndarray) -> np.ndarray:
    """(h, h, 3) uint8 by a whole factor to at least SIDE pixels, every pixel a square."""
    factor = max(1, -(-SIDE // picture.shape[0]))
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))
