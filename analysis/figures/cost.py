"""Draw the primary score over training FLOPs and training time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import labels
from analysis.figures import layout
from analysis.figures.styles import NEUTRAL, Palette, arm_styles
from analysis.io.results import Results
from microdit.common.contract import COSTS, SECONDS, TRAIN_FLOPS, Tag, final_metric
from microdit.common.numbers import Estimate, estimate, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFIXES = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M"}
EQUAL_COST_TOLERANCE = 0.01  # relative; also the tolerance of a study that holds a cost
PANELS = {TRAIN_FLOPS: "training compute", SECONDS: COSTS[SECONDS].label}
LABEL_OFFSETS = (  # points in x and y, horizontal alignment; in the order in which they are tried
    (5, 4, "left"),
    (5, -9, "left"),
    (-5, 4, "right"),
    (-5, -9, "right"),
    (0, 8, "center"),
    (0, -13, "center"),
)


@dataclass(frozen=True)
class Point:
    """Cost and score of an arm."""

    arm: str
    cost: Estimate
    score: Estimate


@layout.with_print_style
def cost_figure(results: Results) -> Figure | None:
    """Return the primary metric over training FLOPs and over time.

    The Pareto front of the means is drawn too. A cost that all arms share is stated in the title instead.

    Args:
        results: the study's runs.

    Returns:
        The figure; None without costs, for a single arm, and for a search, whose trials differ mostly in settings.
    """
    study = results.study
    every = {column: points for column in PANELS if len(points := _points(results, column)) > 1}
    found = {column: points for column, points in every.items() if not _shared(points)}
    if not found or study.search:
        return None
    figure, axes = layout.panels(len(found))
    looks = arm_styles(results)
    lower = results.lower_is_better(study.primary)
    for axis, (column, points) in zip(axes, found.items(), strict=True):
        _panel(axis, f"{PANELS[column]} ({unit(results.frame, column)[1]})", points, looks, lower)
    metric = results.label(study.primary)
    axes[0].set_ylabel(f"{metric} {results.arrow(study.primary)}")
    layout.legend(figure, _handles(axes[0], results, looks))
    named, short = looks.grouped and len(results.arms) <= layout.MAX_ARMS_DRAWN, _short_names(results)
    for axis, points in zip(axes, found.values(), strict=True):
        if named:
            _label_points(figure, axis, points, short)
    bars = " Bars: 95% intervals over seeds, clipped at the panel's edge." if layout.has_intervals(results) else ""
    text = "arm" if set(short) == set(short.values()) else labels.setting_label(study.x)
    beside = f" Text beside a point: its {text}." if named else ""
    equal = "".join(
        f" All arms have the same {PANELS[column]}: {format_number(points[0].cost.mean)} "
        f"{unit(results.frame, column)[1]}."
        for column, points in every.items()
        if column not in found
    )
    head = f"{metric} against the cost of training: {study.name}, scale {study.scale}, {layout.seeds(results)}"
    front = "Pareto front of the means: no other arm has a better mean at the same or lower cost (intervals ignored)."
    layout.title(figure, head, f"{front}{bars}{beside}{equal} Device: {results.tag(Tag.DEVICE)}.")
    return figure


def pareto(costs: Sequence[float], scores: Sequence[float], lower: bool) -> list[int]:
    """Return the indices of the points on the Pareto front, by ascending cost.

    No other point is at least as good in both cost and score and better in one.

    Args:
        costs: of the points; lower is better.
        scores: of the points.
        lower: whether lower scores are better.
    """
    sign = 1.0 if lower else -1.0
    front: list[int] = []
    best = math.inf
    cheapest = -math.inf
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], sign * scores[i])):
        score = sign * scores[place]
        if score < best or (score == best and costs[place] == cheapest):  # equal points are both on the front
            front.append(place)
            best, cheapest = score, costs[place]
    return front


def _points(results: Results, column: str) -> list[Point]:
    """Return the arms with cost and score, in the study's order."""
    frame = results.frame
    if column not in frame:
        return []
    found = []
    for arm, runs in frame.groupby("arm", sort=False):
        point = Point(
            str(arm),
            estimate(runs[column] / unit(frame, column)[0]),
            estimate(runs[final_metric(results.study.primary)]),
        )
        if point.cost.n and point.score.n:
            found.append(point)
    return found


def _shared(points: Sequence[Point]) -> bool:
    costs = [point.cost.mean for point in points]
    return max(costs) - min(costs) <= EQUAL_COST_TOLERANCE * max(costs)


def unit(frame: pd.DataFrame, column: str) -> tuple[float, str]:
    """Return the divisor of a cost on the axis, and the resulting unit.

    Args:
        frame: one row per run.
        column: the cost, such as `cost/train_flops`.

    Returns:
        Such as (1e12, "TFLOPs").
    """
    name = COSTS[column].unit
    if column != TRAIN_FLOPS:
        return 1.0, name
    size = next((size for size in PREFIXES if frame[column].max() >= size), 1e6)
    return size, PREFIXES[size] + name


def _panel(axis: Axes, label: str, points: list[Point], looks: Palette, lower: bool) -> None:
    costs, scores = [p.cost.mean for p in points], [p.score.mean for p in points]
    for point in points:
        look = looks.arms[point.arm]
        axis.errorbar(
            [point.cost.mean], [point.score.mean], yerr=[point.score.half], xerr=[_spread(point.cost)],
            color=look.color, marker=look.marker, markersize=6, markeredgecolor="white", markeredgewidth=0.6,
            linestyle="none", elinewidth=1.0, capsize=2.5, zorder=3,
        )  # fmt: skip
    axis.set_xlabel(label)
    layout.scale_ticks(axis, "x", costs)
    _limits(axis, costs)
    layout.set_y_limits(axis, scores)
    front = pareto(costs, scores, lower)
    xs, ys = [costs[i] for i in front], [scores[i] for i in front]
    right = axis.get_xlim()[1]
    style: dict[str, Any] = {"color": NEUTRAL, "linewidth": 1.1, "linestyle": (0, (4, 2)), "zorder": 1}
    axis.plot([*xs, right], [*ys, ys[-1]], drawstyle="steps-post", label="Pareto front of the means", **style)


def _spread(cost: Estimate) -> float:
    """Return the half-width of an interval, NaN if all seeds have the same cost."""
    return cost.half if cost.half > 1e-9 * abs(cost.mean) else math.nan


def _limits(axis: Axes, costs: Sequence[float]) -> None:
    """Set x limits from the points; intervals of seconds at two seeds are too wide."""
    low, high = min(costs), max(costs)
    if axis.get_xscale() == "log":
        room = (high / low) ** 0.18
        axis.set_xlim(low / room, high * room)
    else:
        room = 0.18 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_xlim(low - room, high + room)


def _handles(axis: Axes, results: Results, looks: Palette) -> dict[str, Any]:
    """Return a legend entry per arm, or per hue if points are labeled, and the front's."""
    from matplotlib.lines import Line2D

    named = {looks.hue[arm]: looks.hues[looks.hue[arm]] for arm in results.arms}
    entries = named if looks.grouped else {arm: looks.arms[arm] for arm in results.arms}
    style: dict[str, Any] = {"linestyle": "none", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}
    found: dict[str, Any] = {}
    for name, look in entries.items():
        label = labels.hue_label(results.study.hue, name) if looks.grouped else name
        found[label] = Line2D([], [], color=look.color, marker=look.marker, **style)
    lines, texts = axis.get_legend_handles_labels()
    return found | dict(zip(texts, lines, strict=True))


def _short_names(results: Results) -> dict[str, str]:
    """Return labels of arms: x if it identifies the arm within its hue, else the name."""
    frame = results.frame.drop_duplicates("arm")
    apart = not frame.duplicated(["hue", "x"]).any() and results.study.x not in ("", "arm")
    xs = dict(zip(frame["arm"], frame["x"], strict=True))
    return {arm: f"{xs[arm]:g}" if apart and isinstance(xs[arm], float) else arm for arm in results.arms}


def _label_points(figure: Figure, axis: Axes, points: list[Point], words: Mapping[str, str]) -> None:
    """Write each arm's label beside its point, covering no point and no other label."""
    figure.draw_without_rendering()
    at = {p.arm: axis.transData.transform((p.cost.mean, p.score.mean)) for p in points}
    dots = np.array(list(at.values()))
    taken: list[Any] = []
    for point in points:
        for place, (dx, dy, align) in enumerate(LABEL_OFFSETS):
            text = axis.annotate(
                words[point.arm], (point.cost.mean, point.score.mean), (dx, dy), textcoords="offset points", ha=align,
                fontsize=6.5, color="#333333", zorder=4,
            )  # fmt: skip
            box = text.get_window_extent()
            covers = any(box.contains(x, y) for x, y in dots) or any(box.overlaps(other) for other in taken)
            if not covers or place == len(LABEL_OFFSETS) - 1:
                taken.append(box)
                break
            text.remove()
