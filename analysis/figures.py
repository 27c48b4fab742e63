"""The study's figure and its training curves, for print: colours, markers and line styles that survive grey."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from analysis import names
from analysis.across import Across
from analysis.load import Results
from analysis.stats import estimate, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours that are dark enough on white, ordered so that neighbours differ in lightness too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
REFERENCE = "#444444"
Drawn = TypeVar("Drawn")
FAR = 3.0  # times the height of the arms' own range that a panel may grow to show real images
PANELS = ("clip_score", "class_accuracy")  # beside the primary metric
PRINT: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def in_print(draw: Callable[[Results], Drawn]) -> Callable[[Results], Drawn]:
    """Draws under PRINT's settings, which matplotlib reads as each element is made."""

    @wraps(draw)
    def drawn(results: Results) -> Drawn:
        import matplotlib as mpl

        with mpl.rc_context(PRINT):
            return draw(results)

    return drawn


@in_print
def score_figure(results: Results) -> Figure:
    """A panel each for the primary metric, CLIP score and class accuracy, over the study's x, a line per hue."""
    study = results.study
    found = names.scores(results.frame.columns, study.primary)
    shown = list(dict.fromkeys([study.primary, *(metric for metric in PANELS if metric in found)]))
    figure, axes = _panels(len(shown), 2.9)
    across = Across.of(results.frame["x"])
    for axis, metric in zip(axes, shown, strict=True):
        _score_panel(axis, results, metric, across)
        across.mark(axis)
        axis.set_xlabel(names.setting(study.x) if study.x else "arm")
    found_handles = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    on_axis = set(across.names)  # a line whose name stands below it needs no legend
    hues = set(results.frame["hue"])
    ordered = sorted(found_handles, key=lambda pair: pair[1] not in hues)  # the lines first, then what they cross
    _legend(figure, {label: handle for handle, label in ordered if label and label not in on_axis})
    _title(figure, study.question, _facts(results))
    return figure


@in_print
def curve_figure(results: Results) -> Figure | None:
    """Training and validation loss by step: a thick line for an arm's mean over seeds, thin ones for the seeds.

    None where no run has logged either.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _panels(2, 3.6)
    handles: dict[str, Any] = {}
    styles = _arm_styles(results)
    for axis, metric, label in zip(axes, ("train/loss", "val/loss"), ("training loss", "validation loss"), strict=True):
        for arm in results.arms:
            runs = results.frame.loc[results.frame["arm"] == arm, "run_id"]
            curves = [curve for run in runs if len((curve := results.history(run, metric))[0])]
            line = _curve(axis, curves, styles[arm])
            if line is not None:
                handles.setdefault(arm, line)
        axis.set_title(label, loc="left")
        axis.set_xlabel("training step")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        values = np.concatenate([line.get_ydata() for line in axis.lines] or [np.array([1.0])]).astype(float)
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0:
            axis.set_yscale("log")
            _plain_log_ticks(axis, values)
    if not handles:
        return None
    axes[0].set_ylabel("loss")
    _legend(figure, handles)
    masked = any("masking" in key for arm in results.study.arms.values() for key in arm)
    note = "A masked arm's training loss is over the patches it keeps: compare arms on validation loss."
    note = note if masked else "Thick: mean over seeds; thin: seeds."
    _title(figure, f"Loss of {results.study.name}, scale {results.study.scale}, {_seeds(results)}", note)
    return figure


def _score_panel(axis: Axes, results: Results, metric: str, across: Across) -> None:
    frame, study, net = results.frame, results.study, results.tag("feature_net")
    column = f"final/{metric}"
    hues = list(dict.fromkeys(frame["hue"]))
    for rank, hue in enumerate(hues):
        runs = frame[frame["hue"] == hue]
        colour, marker, line = _style(rank)
        line = "none" if across.names else line  # names have no order to follow
        shift = 0.02 * (rank - (len(hues) - 1) / 2)
        places = sorted(set(runs["x"]), key=across.place)
        values = [estimate(runs.loc[runs["x"] == place, column]) for place in places]
        xs = [across.place(place, shift) for place in places]
        beside = shift + (0.04 if len(runs) > len(places) else 0.0)  # the seeds, to the right of their mean
        dots = [across.place(place, beside) for place in runs["x"]]
        axis.scatter(dots, runs[column], s=9, marker=marker, color=colour, alpha=0.6, linewidths=0)
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line, "markersize": 6, "label": hue}
        halves = [value.half for value in values]  # NaN at n=1: no bar
        means = [value.mean for value in values]
        axis.errorbar(xs, means, yerr=halves, capsize=3, linewidth=1.5, markeredgecolor="white", **style)
    _fit(axis, frame[column])
    _zero_lines(axis, results, column)
    _real_lines(axis, frame, column)
    axis.set_title(f"{names.title(metric, net)} {names.arrow(metric, study.primary, study.direction)}", loc="left")


def _zero_lines(axis: Axes, results: Results, column: str) -> None:
    """Horizontal lines at the means of arms at x = 0."""
    frame = results.frame
    zero = frame[frame["x"].map(lambda value: value == 0)]
    for arm, runs in zero.groupby("arm", sort=False):
        if len(set(frame["x"])) > 1:
            style: dict[str, Any] = {"color": REFERENCE, "linewidth": 0.9, "linestyle": (0, (6, 3)), "zorder": 1}
            axis.axhline(runs[column].mean(), label=f"{arm} (at 0)", **style)


def _real_lines(axis: Axes, frame: pd.DataFrame, column: str) -> None:
    """What real images score: a line, or an arrow with the value where a line would flatten what the arms differ by."""
    for suffix in ("_floor", "_real"):
        value = _constant(frame, column + suffix)
        if value is None:
            continue
        bottom, top = axis.get_ylim()
        low, high = min(bottom, value), max(top, value)
        if high - low <= FAR * (top - bottom):
            margin = 0.05 * (high - low)
            axis.axhline(value, color="black", linewidth=1.1, linestyle=":", label="real images", zorder=1)
            axis.set_ylim(min(bottom, value - margin), max(top, value + margin))
        else:
            above = value > top
            words, height = f"real images: {number(value)} {'↑' if above else '↓'}", 0.98 if above else 0.02
            where: dict[str, Any] = {"ha": "right", "va": "top" if above else "bottom", "transform": axis.transAxes}
            axis.text(0.99, height, words, fontsize=7.5, **where)


def _fit(axis: Axes, values: pd.Series) -> None:
    """Limits from the seeds' values, so that an interval of two seeds (t = 12.7) can't flatten the panel."""
    low, high = values.min(), values.max()
    room = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = axis.get_ylim()
    margin = 0.2 * room  # of a marker at the edge
    axis.set_ylim(min(max(bottom, low - room), low - margin), max(min(top, high + room), high + margin))


def _curve(axis: Axes, curves: list[tuple[np.ndarray, np.ndarray]], style: tuple[str, str, Any]) -> Any | None:
    """Draws the seeds' curves, returns the line of their mean; None where there are none."""
    if not curves:
        return None
    colour, marker, line = style
    columns = [pd.Series(values, index=steps) for steps, values in curves]
    table = pd.concat(columns, axis=1).sort_index()
    window = max(1, len(table) // 25)  # a training loss is noisy: each point is a mean of its neighbours
    smooth = table.rolling(window, center=True, min_periods=1).mean()
    if len(curves) > 1:
        for seed in smooth:
            axis.plot(smooth.index, smooth[seed], color=colour, linewidth=0.6, alpha=0.35)
    alone = marker if len(table) == 1 else None
    (mean,) = axis.plot(smooth.index, smooth.mean(axis=1), color=colour, linestyle=line, marker=alone, linewidth=1.6)
    return mean


def _plain_log_ticks(axis: Axes, values: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    decade = values.max() / values.min() > 30
    if decade:
        return
    ticks = [tick for tick in MaxNLocator(6).tick_values(values.min(), values.max()) if tick > 0]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _arm_styles(results: Results) -> dict[str, tuple[str, str, Any]]:
    """Colour by hue, line by the arm's place within it; each arm its own colour where that tells more."""
    frame = results.frame.drop_duplicates("arm")
    hues = list(dict.fromkeys(frame["hue"]))
    styles: dict[str, tuple[str, str, Any]] = {}
    for hue_number, hue in enumerate(hues):
        for place, arm in enumerate(frame.loc[frame["hue"] == hue, "arm"]):
            colour, marker, _ = _style(hue_number)
            shift = place if len(hues) < len(frame) else hue_number
            styles[arm] = (colour, marker, LINES[shift % len(LINES)])
    if len(hues) == 1:
        styles = {arm: _style(number) for number, arm in enumerate(frame["arm"])}
    return styles


def _style(number: int) -> tuple[str, str, Any]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], LINES[number % len(LINES)]


def _constant(frame: pd.DataFrame, column: str) -> float | None:
    return float(frame[column].mean()) if column in frame and frame[column].notna().any() else None


def _facts(results: Results) -> str:
    """What the numbers were measured with, for the line under the title."""
    frame = results.frame
    reference = _constant(frame, "final/reference_images")
    against = f" against {reference:.0f} real" if reference is not None else ""
    networks = names.networks(results.tag("feature_net"))
    several = frame.groupby("arm").size().max() > 1
    bars = "bars: 95% interval, cut where it leaves the panel; small: seeds" if several else "no interval at n=1"
    return (
        f"{results.study.name}, scale {results.study.scale}; {_seeds(results)}; {results.tag('samples')} samples a run"
        f"{against}; features: {', '.join(networks)}; {bars}"
    )


def _seeds(results: Results) -> str:
    counts = results.frame.groupby("arm").size()
    low, high = counts.min(), counts.max()
    return f"n={low} seed{'s' if low > 1 else ''}" if low == high else f"n={low} to {high} seeds"


def _panels(count: int, width: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * count, 5.0), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.set_axisbelow(True)
    return figure, list(axes)


def _legend(figure: Figure, handles: dict[str, Any]) -> None:
    if handles:
        wide = 0.75 + 0.075 * max(len(label) for label in handles)  # inches of an entry
        fit = max(1, min(6, math.floor(figure.get_figwidth() / wide)))
        columns = math.ceil(len(handles) / math.ceil(len(handles) / fit))  # rows of equal length
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False,
            fontsize=8, handlelength=3.2,
        )  # fmt: skip


def _title(figure: Figure, title: str, below: str) -> None:
    wide = int(figure.get_figwidth() * 15)
    lines = [textwrap.fill(title, int(wide * 0.85)), textwrap.fill(below, wide, break_on_hyphens=False)]
    figure.suptitle("\n".join(line for line in lines if line), fontsize=8.5, x=0.01, ha="left")
