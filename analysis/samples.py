"""What the arms draw: a row of final pictures per arm, the same prompts and noise in every column."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from analysis.load import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
SIDE = 256  # pixels that a tile is enlarged to at least, so that a viewer doesn't blur it
INCH = 1.15  # of a tile


def sample_figure(results: Results) -> Figure | None:
    """Final pictures of each arm at its first seed, captions below the columns; None where no run has any."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = results.frame.drop_duplicates("arm")
    rows = {}
    for run in first.itertuples():
        found = results.samples(str(run.run_id))
        if found is not None:
            rows[f"{run.arm}\nseed {run.seed}"] = found
    if not rows:
        return None
    prompts = next(iter(rows.values()))[1][:COLUMNS]
    columns = len(prompts)
    captions = [textwrap.wrap(prompt, 19) for prompt in prompts]
    left, below, above = 1.15, 0.16 * max(len(lines) for lines in captions) + 0.12, 0.3
    width, height = left + INCH * columns, above + INCH * len(rows) + below
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for number, (label, (pictures, own)) in enumerate(rows.items()):
        bottom = below + INCH * (len(rows) - 1 - number)
        figure.text((left - 0.1) / width, (bottom + INCH / 2) / height, label, ha="right", va="center", fontsize=9)
        for column, picture in enumerate(pictures[:columns]):
            if own[column] != prompts[column]:
                continue  # another prompt than the column's: an empty place is better than a wrong caption
            place = (left + INCH * column) / width, bottom / height, 0.96 * INCH / width, 0.96 * INCH / height
            axis = figure.add_axes(place)
            axis.imshow(enlarge(picture), interpolation="lanczos")
            axis.set_axis_off()
    for column, lines in enumerate(captions):
        x = (left + INCH * (column + 0.48)) / width
        figure.text(x, (below - 0.06) / height, "\n".join(lines), ha="center", va="top", fontsize=7.5)
    title = f"{results.study.name}, scale {results.study.scale}: same prompts and noise for every arm"
    figure.text(0.1 / width, 1 - 0.08 / height, title, ha="left", va="top", fontsize=9)
    return figure


def enlarge(picture: np.ndarray) -> np.ndarray:
    """(h, h, 3) uint8 by a whole factor to at least SIDE pixels, every pixel a square."""
    factor = max(1, -(-SIDE // picture.shape[0]))
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST))
