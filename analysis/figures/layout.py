"""Share the layout of figures: sizes, panels, legends, titles, ticks and limits."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from analysis.io.results import Results
from microdit.common.contract import final_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches of a page's text, so that font sizes are those in print
DPI = 250
PRINT: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "pdf.fonttype": 42,
}
MIN_DECADE_RATIO = 6  # ratio from which the ticks of a logarithmic axis are 1, 2 and 5 times powers of ten
MIN_LOG_RANGE = 1.6  # ratio of the largest to the smallest value from which an axis becomes logarithmic
MAX_ARMS_DRAWN = 24  # one line or row each
Drawn = TypeVar("Drawn")


def with_print_style(draw: Callable[[Results], Drawn]) -> Callable[[Results], Drawn]:
    """Decorate a figure function to draw with the settings of PRINT.

    Args:
        draw: returns a figure of a study's runs.

    Returns:
        The same function within matplotlib's rc_context.
    """

    @wraps(draw)
    def drawn(results: Results) -> Drawn:
        import matplotlib as mpl

        with mpl.rc_context(PRINT):
            return draw(results)

    return drawn


def panels(count: int, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes side by side.

    Args:
        count: number of axes; a single one is narrower than a page.
        height: of the figure, in inches.

    Returns:
        The figure and its axes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH if count > 1 else 5.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Add a legend below the panels, in rows of about equal length.

    Many entries make the figure higher.

    Args:
        figure: the figure.
        handles: matplotlib's artists by label.
    """
    if not handles:
        return
    wide = 0.65 + 0.066 * max(len(label) for label in handles)  # inches per entry
    fit = max(1, min(6, math.floor(figure.get_figwidth() / wide)))
    rows = math.ceil(len(handles) / fit)
    figure.set_figheight(figure.get_figheight() + 0.17 * (rows - 1))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=math.ceil(len(handles) / rows),
        frameon=False, handlelength=2.8, columnspacing=1.4,
    )  # fmt: skip


def title(figure: Figure, text: str, below: str) -> None:
    """Add two paragraphs at the top left, wrapped to the figure's width.

    Args:
        figure: the figure, which becomes higher by the lines.
        text: the first paragraph.
        below: the second paragraph.
    """
    wide = int(figure.get_figwidth() * 17.5)
    lines = [textwrap.fill(text, int(wide * 0.9)), textwrap.fill(below, wide, break_on_hyphens=False)]
    words = "\n".join(line for line in lines if line)
    figure.set_figheight(figure.get_figheight() + 0.13 * words.count("\n"))
    figure.suptitle(words, fontsize=7.5, x=0.01, ha="left")


def seeds(results: Results) -> str:
    """Return `n=3 seeds`, or the range if arms have different numbers."""
    counts = results.frame.groupby("arm").size()
    low, high = counts.min(), counts.max()
    return f"n={low} seed{'s' if low > 1 else ''}" if low == high else f"n={low} to {high} seeds"


def select_arms(results: Results, most: int = MAX_ARMS_DRAWN) -> tuple[list[str], str]:
    """Return the arms to draw.

    Args:
        results: the study's runs.
        most: with more arms than this, the best by mean and the baseline are drawn.

    Returns:
        The arms in the study's order, and a note if they are not all.
    """
    study, arms = results.study, results.arms
    if len(arms) <= most:
        return arms, ""
    means = results.frame.groupby("arm", sort=False)[final_metric(study.primary)].mean()
    best = set(means.sort_values(ascending=study.direction == "minimize").index[:most])
    who = f" and {study.baseline}" if study.baseline in arms and study.baseline not in best else ""
    name = results.label(study.primary)
    return [
        arm for arm in arms if arm in best or arm == study.baseline
    ], f"The {most} best of {len(arms)} in {name}{who}."


def has_intervals(results: Results) -> bool:
    """Return whether some arm has more than one seed, hence an interval."""
    return bool(results.frame.groupby("arm").size().max() > 1)


def set_y_limits(axis: Axes, values: pd.Series | Sequence[float]) -> None:
    """Set y limits from the values.

    Otherwise an interval over two seeds (t = 12.7) could flatten the panel.

    Args:
        axis: matplotlib's axes.
        values: points of the panel; those that are not finite don't count.
    """
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if not len(data):
        return
    low, high = float(data.min()), float(data.max())
    room = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = axis.get_ylim()
    margin = 0.2 * room  # for a marker at the edge
    axis.set_ylim(min(max(bottom, low - room), low - margin), max(min(top, high + room), high + margin))


def scale_ticks(axes: Axes, which: str, values: Sequence[float] | np.ndarray) -> None:
    """Make an axis logarithmic, with a few numbers, if positive values span enough.

    Args:
        axes: matplotlib's axes.
        which: "x" or "y".
        values: points of the panel; those that are not finite don't count.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if not len(data) or data.min() <= 0 or (ratio := data.max() / data.min()) < MIN_LOG_RANGE:
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    if ratio > 300 or data.max() >= 1e5 or data.min() < 1e-4:
        return
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_minor_locator(NullLocator())
    round_steps = MaxNLocator(5, steps=[1, 2, 5, 10])
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if ratio > MIN_DECADE_RATIO else round_steps)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
