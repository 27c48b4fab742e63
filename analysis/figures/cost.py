"""Quality against cost: whether what an arm saves, in FLOPs and in time, is worth what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import labels as names
from analysis.figures import layout
from analysis.figures.styles import NEUTRAL, Palette, arm_styles
from analysis.io.results import Results
from analysis.stats.intervals import Estimate, estimate, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFIXES = {1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M"}
SHARED = 0.01  # of a cost, within which arms count as equal; what `holds` allows, too
SHOWN = {"cost/train_flops": "training compute", "cost/seconds": "training time"}
LABEL_OFFSETS = (
    (5, 4, "left"),
    (5, -9, "left"),
    (-5, 4, "right"),
    (-5, -9, "right"),
    (0, 8, "center"),
    (0, -13, "center"),
)


@dataclass(frozen=True)
class Point:
    """An arm: what it costs and how well it does."""

    arm: str
    cost: Estimate
    score: Estimate


@layout.with_print_style
def cost_figure(results: Results) -> Figure | None:
    """The primary metric over training FLOPs and over time, with the Pareto front of the means.

    A cost that the arms share is said, not drawn. None where no run has either cost, for one arm, and for a search,
    whose trials differ in settings more than in cost.
    """
    study = results.study
    every = {column: points for column in SHOWN if len(points := _points(results, column)) > 1}
    found = {column: points for column, points in every.items() if not _shared(points)}
    if not found or study.search:
        return None
    figure, axes = layout.panels(len(found))
    looks = arm_styles(results)
    lower = names.lower_is_better(study.primary, study.primary, study.direction)
    for axis, (column, points) in zip(axes, found.items(), strict=True):
        _panel(axis, f"{SHOWN[column]} ({unit(results.frame, column)[1]})", points, looks, lower)
    metric = names.metric_label(study.primary, results.tag("feature_net"))
    axes[0].set_ylabel(f"{metric} {names.direction_arrow(study.primary, study.primary, study.direction)}")
    layout.legend(figure, _handles(axes[0], results, looks))
    named, short = looks.grouped and len(results.arms) <= layout.MAX_ARMS_DRAWN, _short_names(results, looks)
    for axis, points in zip(axes, found.values(), strict=True):
        if named:
            _name(figure, axis, points, short)
    bars = " Bars: 95% intervals over seeds, cut where they leave the panel." if layout.has_intervals(results) else ""
    told = "arm" if set(short) == set(short.values()) else names.setting_label(study.x)
    labels = f" Beside a point: its {told}." if named else ""
    equal = "".join(
        f" All arms have the same {SHOWN[column]}: {number(points[0].cost.mean)} {unit(results.frame, column)[1]}."
        for column, points in every.items()
        if column not in found
    )
    head = f"{metric} against the cost of training: {study.name}, scale {study.scale}, {layout.seeds(results)}"
    front = "Pareto front: no other arm's mean is as good at as little cost; it does not weigh the intervals."
    layout.title(figure, head, f"{front}{bars}{labels}{equal} Device: {results.tag('device')}.")
    return figure


def pareto(costs: Sequence[float], scores: Sequence[float], lower: bool) -> list[int]:
    """Places of the points that no other is at least as good as in both and better in one, by ascending cost."""
    sign = 1.0 if lower else -1.0
    front: list[int] = []
    best = math.inf
    cheapest = -math.inf
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], sign * scores[i])):
        score = sign * scores[place]
        if score < best or (score == best and costs[place] == cheapest):  # twins are both on it
            front.append(place)
            best, cheapest = score, costs[place]
    return front


def _points(results: Results, column: str) -> list[Point]:
    """Arms with both numbers, in the study's order."""
    frame = results.frame
    if column not in frame:
        return []
    found = []
    for arm, runs in frame.groupby("arm", sort=False):
        point = Point(
            str(arm), estimate(runs[column] / unit(frame, column)[0]), estimate(runs[f"final/{results.study.primary}"])
        )
        if point.cost.n and point.score.n:
            found.append(point)
    return found


def _shared(points: Sequence[Point]) -> bool:
    costs = [point.cost.mean for point in points]
    return max(costs) - min(costs) <= SHARED * max(costs)


def unit(frame: pd.DataFrame, column: str) -> tuple[float, str]:
    """What a cost is divided by for the axis, and what its numbers then are."""
    if not column.endswith("flops"):
        return 1.0, "s"
    size = next((size for size in PREFIXES if frame[column].max() >= size), 1e6)
    return size, f"{PREFIXES[size]}FLOP"


def _panel(axis: Axes, label: str, points: list[Point], looks: Palette, lower: bool) -> None:
    costs, scores = [p.cost.mean for p in points], [p.score.mean for p in points]
    for point in points:
        look = looks.arms[point.arm]
        axis.errorbar(
            [point.cost.mean], [point.score.mean], yerr=[point.score.half], xerr=[_spread(point.cost)],
            color=look.colour, marker=look.marker, markersize=6, markeredgecolor="white", markeredgewidth=0.6,
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
    """Half an interval, NaN where seeds cost alike, as FLOPs do."""
    return cost.half if cost.half > 1e-9 * abs(cost.mean) else math.nan


def _limits(axis: Axes, costs: Sequence[float]) -> None:
    """Room beside the points, as for y: seconds of two seeds have wide intervals."""
    low, high = min(costs), max(costs)
    if axis.get_xscale() == "log":
        room = (high / low) ** 0.18
        axis.set_xlim(low / room, high * room)
    else:
        room = 0.18 * (high - low) or 0.1 * abs(high) or 1.0
        axis.set_xlim(low - room, high + room)


def _handles(axis: Axes, results: Results, looks: Palette) -> dict[str, Any]:
    """An entry per arm, or per hue where each point is labelled; then the front."""
    from matplotlib.lines import Line2D

    named = {looks.hue[arm]: looks.hues[looks.hue[arm]] for arm in results.arms}
    entries = named if looks.grouped else {arm: looks.arms[arm] for arm in results.arms}
    style: dict[str, Any] = {"linestyle": "none", "markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.6}
    found: dict[str, Any] = {}
    for name, look in entries.items():
        label = names.hue_label(results.study.hue, name) if looks.grouped else name
        found[label] = Line2D([], [], color=look.colour, marker=look.marker, **style)
    lines, labels = axis.get_legend_handles_labels()
    return found | dict(zip(labels, lines, strict=True))


def _short_names(results: Results, looks: Palette) -> dict[str, str]:
    """What tells an arm from the others of its hue: its x where that does, else its name."""
    frame = results.frame.drop_duplicates("arm")
    apart = not frame.duplicated(["hue", "x"]).any() and results.study.x not in ("", "arm")
    xs = dict(zip(frame["arm"], frame["x"], strict=True))
    return {arm: f"{xs[arm]:g}" if apart and isinstance(xs[arm], float) else arm for arm in results.arms}


def _name(figure: Figure, axis: Axes, points: list[Point], words: Mapping[str, str]) -> None:
    """Writes an arm's name beside its point, where it covers neither a point nor another name."""
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
