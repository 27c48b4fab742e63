"""Draw the study's main figure: scores over its axis, with the paper's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import labels
from analysis.claims.paper_values import paper_value
from analysis.figures import layout
from analysis.figures.axis import StudyAxis
from analysis.figures.styles import NEUTRAL, Palette, arm_styles
from analysis.io.columns import mean_or_none
from analysis.io.results import Results
from microdit.common.contract import FLOOR_SUFFIX, REAL_SUFFIX, REFERENCE_IMAGES, Tag, final_metric
from microdit.common.numbers import estimate, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_RANGE_GROWTH = 3.0  # factor by which a panel's range may grow to show the score of real images
PANELS = ("fd", "clip_fd", "clip_score")  # in the paper's order
MAX_DODGE = 0.08  # fraction of the axis between hues at the same x
PAPER_LABEL = "paper's FID (hollow, right axis)"
OTHER_NETWORKS = "The paper's FID is on Inception features at its own scale: compare its order, not its values."


@layout.with_print_style
def score_figure(results: Results) -> Figure:
    """Return one panel per score over the study's x.

    The scores are FD, CLIP-FD, CLIP score, and the primary metric if it is another. There is one line per hue if x is a
    number. Diverged runs are crosses at the top edge.

    Args:
        results: the study's runs.
    """
    study, looks = results.study, arm_styles(results)
    shown = [metric for metric in PANELS if metric in results.scores]
    shown = shown if study.primary in shown else [study.primary, *shown[-2:]]
    figure, axes = layout.panels(len(shown))
    across = StudyAxis.of(_places(results), len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        _panel(axis, results, metric, across, looks)
        across.mark(axis)
        axis.set_xlabel(labels.setting_label(study.x) if study.x else "arm")
        _crosses(axis, results, across, looks)
    for axis, metric in zip(axes, shown, strict=True):
        if metric == "fd":
            _paper(axis, results, across, looks)
    pairs = [pair for axis in figure.axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in pairs}
    layout.legend(figure, hue_handles(results, looks, set(across.names)) | handles)
    layout.title(figure, study.question, f"{_facts(results)}.{' ' + OTHER_NETWORKS if PAPER_LABEL in handles else ''}")
    return figure


def hue_handles(results: Results, looks: Palette, on_axis: set[str]) -> dict[str, Any]:
    """Return legend entries: one per hue with a run, or per arm if x is a cost.

    Args:
        results: the study's runs.
        looks: their styles.
        on_axis: names on the x axis, which need no entry.

    Returns:
        Artists by label; empty if x identifies the arms.
    """
    from matplotlib.lines import Line2D

    if results.study.search:
        return {}
    entries, column = (looks.hues, "hue") if len(looks.hues) > 1 else (looks.arms, "arm")
    if column == "arm" and "/" not in results.study.x:
        return {}
    present = dict.fromkeys([*results.frame[column], *results.diverged[column]])
    bare = bool(on_axis) or column == "arm"
    found = {}
    for hue, look in entries.items():
        if hue in present and hue not in on_axis:
            found[labels.hue_label(results.study.hue, hue)] = Line2D(
                [], [], color=look.color, marker=look.marker, linestyle="none" if bare else look.line,
                markeredgecolor="white", markeredgewidth=0.6, linewidth=1.3,
            )  # fmt: skip
    return found


def _places(results: Results) -> pd.Series:
    """Return x of every finished or diverged run, in the study's order."""
    order = {arm: rank for rank, arm in enumerate([*results.study.arms, *results.arms])}
    both = [frame[["arm", "x"]] for frame in (results.frame, results.diverged) if len(frame)]
    every = pd.concat(both)
    places = every.assign(rank=every["arm"].map(order)).sort_values("rank", kind="stable")["x"]
    return places[places.notna()]


def _panel(axis: Axes, results: Results, metric: str, across: StudyAxis, looks: Palette) -> None:
    study, column = results.study, final_metric(metric)
    frame = results.frame[results.frame["x"].notna()]
    beside = _Dodge.of(results, across, looks)
    for hue, runs in frame.groupby("hue", sort=False):
        look = looks.hues[str(hue)]
        means = {arm: estimate(part[column]) for arm, part in runs.groupby("arm", sort=False)}
        at = dict(zip(runs["arm"], runs["x"], strict=True))
        order = sorted(means, key=lambda arm: across.place(at[arm]))
        if not across.names and not study.search:  # names have no order, so no line
            where = [across.place(at[arm], beside.shift(at[arm], str(hue))) for arm in order]
            axis.plot(where, [means[arm].mean for arm in order], color=look.color, linestyle=look.line, linewidth=1.3)
        for arm in order:
            own, part = looks.arms[str(arm)], runs[runs["arm"] == arm]
            shift = beside.shift(at[arm], str(hue))
            if len(part) > 1:  # the seeds, to the right of their mean
                dots = [across.place(at[arm], shift + 0.45 * beside.step)] * len(part)
                axis.scatter(dots, part[column], s=7, marker=own.marker, color=own.color, alpha=0.6, linewidths=0)
            axis.errorbar(
                [across.place(at[arm], shift)], [means[arm].mean], yerr=[means[arm].half], color=own.color,
                marker=own.marker, linestyle="none", markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
                elinewidth=1.2, capsize=2.5,
            )  # fmt: skip
    layout.set_y_limits(axis, frame[column])
    _zero_lines(axis, results, column, looks)
    _real_lines(axis, frame, column)
    arrow = results.arrow(metric)
    axis.set_title(f"{results.label(metric)} {arrow}", loc="left")


@dataclass(frozen=True)
class _Dodge:
    """Offsets of hues with the same x, so that they don't cover each other.

    Attributes:
        step: between two hues, as a fraction of the axis.
        at: hues by x.
    """

    step: float
    at: Mapping[Any, list[str]]

    @classmethod
    def of(cls, results: Results, across: StudyAxis, looks: Palette) -> _Dodge:
        at: dict[Any, list[str]] = {}
        for hue in looks.hues:
            for frame in (results.frame, results.diverged):
                for x in set(frame.loc[frame["hue"] == hue, "x"]):
                    if hue not in at.setdefault(x, []):
                        at[x].append(hue)
        most = max((len(hues) for hues in at.values()), default=1)
        # Without error bars nothing is covered, so points need no offset.
        bare = not across.names and not layout.has_intervals(results)
        return cls(0.0 if bare else min(MAX_DODGE, 0.8 * across.gap() / most), at)

    def shift(self, x: Any, hue: str) -> float:
        hues = self.at[x]
        return self.step * (hues.index(hue) - (len(hues) - 1) / 2)

    def left(self, x: Any) -> float:
        """Return the offset to the left of all hues at x."""
        return -self.step * (len(self.at[x]) + 1) / 2


def _crosses(axis: Axes, results: Results, across: StudyAxis, looks: Palette) -> None:
    """Draw diverged runs, which have no score, as crosses at the top edge."""
    lost = results.diverged
    beside = _Dodge.of(results, across, looks)
    for arm, hue, x in dict.fromkeys(zip(lost["arm"], lost["hue"], lost["x"], strict=True)):
        if isinstance(x, float) and math.isnan(x):
            continue
        where = [across.place(x, beside.shift(x, str(hue)))]
        axis.plot(
            where, [0.97], transform=axis.get_xaxis_transform(), color=looks.arms[str(arm)].color, marker="x",
            markersize=7, markeredgewidth=1.8, linestyle="none", clip_on=False,
        )  # fmt: skip
    if len(lost):
        label = f"diverged: no score ({len(lost)} run{'s' if len(lost) > 1 else ''})"
        axis.plot([], [], color="black", marker="x", markersize=6, markeredgewidth=1.8, linestyle="none", label=label)


def _paper(axis: Axes, results: Results, across: StudyAxis, looks: Palette) -> None:
    """Draw the paper's FID beside our FD, as hollow markers on a right axis."""
    found = {arm: paper_value(results.study.name, results.settings(arm)) for arm in results.arms}
    known = {arm: value.fid for arm, value in found.items() if value}
    if not known:
        return
    from matplotlib.ticker import MaxNLocator

    right = axis.twinx()
    right.grid(False)
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(NEUTRAL)
    right.tick_params(axis="y", colors=NEUTRAL)
    right.set_ylabel("paper's FID", color=NEUTRAL, labelpad=3)
    right.yaxis.set_major_locator(MaxNLocator(4))
    right.set_ylim(0, 1.15 * max(known.values()))
    beside = _Dodge.of(results, across, looks)
    xs = dict(zip(results.frame["arm"], results.frame["x"], strict=True))
    for arm, fid in known.items():
        where = across.place(xs[arm], beside.left(xs[arm]))
        own = looks.arms[arm]
        right.plot(
            [where], [fid], marker=own.marker, markersize=5.5, markerfacecolor="white", markeredgecolor=own.color,
            markeredgewidth=1.2, linestyle="none",
        )  # fmt: skip
    gray: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": NEUTRAL, "linestyle": "none"}
    right.plot([], [], marker="o", markersize=5.5, markeredgewidth=1.2, label=PAPER_LABEL, **gray)


def _zero_lines(axis: Axes, results: Results, column: str, looks: Palette) -> None:
    """Draw horizontal lines at the means of arms with x = 0."""
    frame = results.frame
    if results.study.search or frame["x"].nunique() < 2:
        return
    zero = frame[frame["x"].map(lambda value: value == 0)]
    if any(isinstance(value, float) and value < 0 for value in frame["x"]):
        return  # 0 is then an ordinary value
    for arm, runs in zero.groupby("arm", sort=False):
        color = looks.arms[str(arm)].color
        axis.axhline(
            runs[column].mean(), label=f"{arm} (at 0)", color=color, linewidth=0.8, linestyle=(0, (6, 3)), zorder=1
        )


def _real_lines(axis: Axes, frame: pd.DataFrame, column: str) -> None:
    """Draw the score of real images as a line.

    A score far outside the arms' range is printed with an arrow instead.
    """
    for suffix in (FLOOR_SUFFIX, REAL_SUFFIX):
        value = mean_or_none(frame, column + suffix)
        if value is None:
            continue
        bottom, top = axis.get_ylim()
        low, high = min(bottom, value), max(top, value)
        if high - low <= MAX_RANGE_GROWTH * (top - bottom):
            margin = 0.05 * (high - low)
            axis.axhline(value, color="black", linewidth=1.1, linestyle=":", label="real images", zorder=1)
            axis.set_ylim(min(bottom, value - margin), max(top, value + margin))
        else:
            words = f"real: {format_number(value)} {'↑' if value > top else '↓'}"
            axis.set_title(
                words, loc="right", fontsize=6.5, color=NEUTRAL
            )  # beside the title, so that it covers no point


def _facts(results: Results) -> str:
    """Return how the scores were measured, for the title."""
    frame = results.frame
    reference = mean_or_none(frame, final_metric(REFERENCE_IMAGES))
    against = f" against {reference:.0f} real" if reference is not None else ""
    networks = labels.networks(results.tag(Tag.FEATURE_NET))
    bars = "no interval at n=1"
    if layout.has_intervals(results):
        bars = "bars: 95% interval over seeds, clipped at the panel's edge; small markers: seeds"
    return (
        f"{results.study.name}, scale {results.study.scale}; {layout.seeds(results)}; {results.tag(Tag.SAMPLES)} "
        f"samples per run{against}; features: {', '.join(networks)}; {bars}"
    )
