"""Draw samples: one row per arm, one prompt and noise per column."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from analysis.figures import layout
from analysis.figures.axis import wrap
from analysis.io.results import Results
from microdit.common.contract import final_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8
MIN_TILE_PIXELS = 256  # smaller images are enlarged, so that a viewer doesn't blur them
MAX_TRIALS_DRAWN = 8  # of a search: its best
LABEL_INCHES = 1.05  # width of the row labels
TILE_INCHES = (layout.WIDTH - LABEL_INCHES) / COLUMNS


def sample_figure(results: Results) -> Figure | None:
    """Return the final images of each arm at its first seed, with prompts below.

    For a search, only the best trials are drawn.

    Args:
        results: the study's runs.

    Returns:
        The figure; None if no run has images.
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
    left, below = LABEL_INCHES, 0.12 * max(len(lines) for lines in captions) + 0.1
    width = left + TILE_INCHES * columns
    title = textwrap.wrap(_title(results), int(16.5 * width))
    above = 0.13 + 0.13 * len(title)
    height = above + TILE_INCHES * len(rows) + below
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for number, (label, (images, own)) in enumerate(rows.items()):
        bottom = below + TILE_INCHES * (len(rows) - 1 - number)
        figure.text(
            (left - 0.1) / width, (bottom + TILE_INCHES / 2) / height, label, ha="right", va="center", fontsize=7
        )
        for column, image in enumerate(images[:columns]):
            if own[column] != prompts[column]:
                continue  # leave the tile empty if its prompt differs from the column's
            place = (
                (left + TILE_INCHES * column) / width,
                bottom / height,
                0.96 * TILE_INCHES / width,
                0.96 * TILE_INCHES / height,
            )
            axis = figure.add_axes(place)
            axis.imshow(enlarge(image), interpolation="lanczos")
            axis.set_axis_off()
    for column, lines in enumerate(captions):
        x = (left + TILE_INCHES * (column + 0.48)) / width
        figure.text(x, (below - 0.06) / height, "\n".join(lines), ha="center", va="top", fontsize=6)
    figure.text(0.1 / width, 1 - 0.08 / height, "\n".join(title), ha="left", va="top", fontsize=7.5)
    return figure


def _title(results: Results) -> str:
    study = results.study
    who = f"the best trials of {study.name}" if study.search else study.name
    each = "trial" if study.search else "arm"
    which = "" if study.search else layout.select_arms(results)[1]
    return f"{who}, scale {study.scale}: same prompts and initial noise for every {each}. {which}".removesuffix(". ")


def _first(results: Results) -> pd.DataFrame:
    """Return the run of each row: an arm's first seed, or a search's best trials."""
    first = results.frame.drop_duplicates("arm")
    if not results.study.search:
        return first[first["arm"].isin(layout.select_arms(results)[0])]
    rising = results.study.direction == "minimize"
    return first.sort_values(final_metric(results.study.primary), ascending=rising).head(MAX_TRIALS_DRAWN)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Return an image enlarged by a whole factor to at least MIN_TILE_PIXELS.

    Args:
        image: (h, w, 3) uint8.

    Returns:
        (f h, f w, 3) uint8.
    """
    factor = max(1, -(-MIN_TILE_PIXELS // image.shape[0]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
