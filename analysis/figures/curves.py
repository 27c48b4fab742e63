"""Draw training and validation loss by step.

A line is the mean over an arm's seeds, a band reaches from the lowest to the highest seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.figures import layout
from analysis.figures.styles import Style, arm_styles
from analysis.io.results import Results
from microdit.common.contract import TRAIN_LOSS, VAL_LOSS_CURVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_FRACTION = 25  # a training loss is drawn as the running mean over this fraction (1/25) of its points
PANELS = {TRAIN_LOSS: "training loss", VAL_LOSS_CURVE: "validation loss"}
MAX_TRIALS_DRAWN = 100  # of a search, whose lines look the same
MAX_LOSS = 1e300  # MLflow stores infinity as the largest float, which no axis can show
MARKERS_PER_LINE = 8


@layout.with_print_style
def curve_figure(results: Results) -> Figure | None:
    """Return one panel for training and one for validation loss.

    With many arms, only the best are read and drawn.

    Args:
        results: the study's runs.

    Returns:
        The figure; None if no run has logged either loss.
    """
    arms, which = layout.select_arms(results, MAX_TRIALS_DRAWN if results.study.search else layout.MAX_ARMS_DRAWN)
    found = {metric: _histories(results, metric, arms) for metric in PANELS}
    found = {metric: curves for metric, curves in found.items() if curves}
    if not found:
        return None
    figure, axes = layout.panels(len(found))
    styles = arm_styles(results).arms
    handles: dict[str, Any] = {}
    width, tables = 1, []
    for axis, (metric, curves) in zip(axes, found.items(), strict=True):
        drawn = []
        for place, (arm, runs) in enumerate(curves.items()):
            table, points = _table(runs, metric)
            width = max(width, points)
            drawn.append(table)
            handles.setdefault(arm, _draw(axis, table, styles[arm], place / len(curves)))
        tables.append(drawn)
        _finish(axis, PANELS[metric], drawn)
    if results.study.search:
        handles = {"one line per trial": next(iter(handles.values()))}
    last = max(float(table.index[-1]) for axis_tables in tables for table in axis_tables)
    for axis in axes:
        axis.set_xlim(0, 1.03 * last)
    axes[0].set_ylabel("weighted squared error")
    layout.legend(figure, handles)
    layout.title(figure, _head(results), f"{which} {_note(results, width)}".strip())
    return figure


def _histories(results: Results, metric: str, arms: list[str]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the curves of each arm, one per seed that has one."""
    every = results.histories(metric, arms)
    runs = results.frame.groupby("arm", sort=False)["run_id"].agg(list)
    found = {}
    for arm in arms:
        curves = [every[run] for run in runs[arm] if run in every]
        if curves:
            found[arm] = curves
    return found


def _table(curves: list[tuple[np.ndarray, np.ndarray]], metric: str) -> tuple[pd.DataFrame, int]:
    """Return losses by step, one column per seed, and the width of their running mean."""
    steps = curves[0][0]
    if all(np.array_equal(own, steps) for own, _ in curves):  # the usual case, and much faster with many seeds
        table = pd.DataFrame(np.stack([values for _, values in curves], axis=1), index=steps)
    else:
        table = pd.concat([pd.Series(values, index=own) for own, values in curves], axis=1).sort_index()
    table = table.where(table.abs() < MAX_LOSS)
    window = max(1, len(table) // SMOOTHING_FRACTION) if metric == TRAIN_LOSS else 1
    return table.rolling(window, center=True, min_periods=1).mean(), window


def _draw(axis: Axes, table: pd.DataFrame, style: Style, offset: float) -> Any:
    mean = table.mean(axis=1)
    if len(table.columns) > 1:
        low, high = table.min(axis=1), table.max(axis=1)
        axis.fill_between(table.index, low, high, color=style.color, alpha=0.18, linewidth=0)
    every = max(1, len(table) // MARKERS_PER_LINE)
    marks = slice(int(offset * every), None, every)  # lines have their markers at different steps
    (line,) = axis.plot(
        table.index, mean, color=style.color, linestyle=style.line, linewidth=1.3, marker=style.marker,
        markevery=marks, markersize=4, markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip
    return line


def _finish(axis: Axes, label: str, drawn: list[pd.DataFrame]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(label, loc="left")
    axis.set_xlabel("training step")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    layout.scale_ticks(axis, "y", np.concatenate([table.mean(axis=1).to_numpy() for table in drawn]))


def _head(results: Results) -> str:
    study = results.study
    return f"Loss of {study.name}, scale {study.scale}, {layout.seeds(results)}"


def _note(results: Results, width: int) -> str:
    parts = []
    if layout.has_intervals(results):
        parts.append("Line: mean over seeds; band: lowest to highest seed.")
    if width > 1:
        parts.append(f"Training loss: running mean over {width} logged points.")
    if any("masking" in key for arm in results.study.arms.values() for key in arm):
        parts.append("A masked arm's training loss covers only the patches it keeps; compare arms on validation loss.")
    return " ".join(parts)
