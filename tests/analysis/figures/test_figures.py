"""Test figures by their artists: styles, positions, limits, and texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from planted import results
from scipy import stats

from analysis.figures import layout, loss_by_noise_level
from analysis.figures.axis import StudyAxis
from analysis.figures.cost import cost_figure, pareto
from analysis.figures.curves import curve_figure
from analysis.figures.loss_by_noise_level import noise_level_figure, quarter_edges, ratio
from analysis.figures.scores import PAPER_LABEL, score_figure
from analysis.figures.styles import COLORS, arm_styles, style
from analysis.io.results import Results

METHOD, RATIO = "model.masking.method", "model.masking.ratio"
MASKED = {"none": {METHOD: "none", RATIO: 0.0}} | {
    f"{method}_{ratio:g}": {METHOD: method, RATIO: ratio}
    for method in ("naive", "deferred", "maskdit")
    for ratio in (0.25, 0.5, 0.75)
}


class Histories:
    """Imitate a client with the losses of every run."""

    def get_metric_history(self, run_id: str, metric: str) -> list[Any]:
        seed = int(run_id.rpartition("-")[2])
        losses = np.exp(-np.arange(1, 11) / 5) + 0.1 * seed
        Point = dataclasses.make_dataclass("Point", ["step", "value", ("timestamp", int, 0)])
        return [Point(100 * (i + 1), float(loss)) for i, loss in enumerate(losses)]


def masking(**changes: Any) -> Results:
    """Return ten arms in four hues over a ratio, with costs and histories."""
    found = results("masking_ratio", MASKED, lambda s: 40 * s[RATIO], seeds=3, x=RATIO, baseline="none")
    frame = found.frame.assign(hue=[MASKED[arm][METHOD] for arm in found.frame["arm"]])
    kept = 1 - frame["x"].astype(float)
    frame = frame.assign(**{"cost/train_flops": 4e15 * kept, "cost/seconds": 100 * kept + frame["seed"]})
    for band in (1, 2, 3, 4):
        frame[f"val/loss_q{band}"] = (1 + band * frame["x"].astype(float)) * (1 + 0.2 * frame["seed"])
    frame = frame.assign(**{"tag.samples": "64", "tag.device": "cpu"})
    study = dataclasses.replace(found.study, x=RATIO, hue=METHOD)
    return dataclasses.replace(found, study=study, frame=frame, client=Histories(), **changes)


def plain(arms: list[str], **columns: Any) -> Results:
    """Return arms with names on the axis, at one seed each."""
    found = results("another", {arm: {} for arm in arms}, lambda s: 0.0, seeds=1, baseline=arms[0])
    frame = found.frame.assign(**{"tag.samples": "64", "tag.device": "cpu"}, **columns)
    return dataclasses.replace(found, frame=frame, client=Histories())


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def drawn(axis: Axes) -> Iterator[tuple[str, str]]:
    """Return (color, marker) of artists at single points."""
    for line in axis.lines:
        if line.get_marker() not in ("None", "", "_", "|", None) and len(line.get_xdata()) == 1:
            yield str(line.get_color()), str(line.get_marker())


def test_more_than_a_hundred_styles_differ() -> None:
    found = {(s.color, s.marker) for s in map(style, range(99))}
    assert len(found) == 99


def test_neighboring_colors_differ_in_gray_and_for_color_blind_readers() -> None:
    """Simulate deuteranomaly and protanomaly (Machado et al., 2009) on linear RGB."""
    blind = [
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in [np.eye(3), *map(np.array, blind)]:
        seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)[np.triu_indices(len(COLORS), 1)]
        assert apart.min() > 0.12
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05)).min() > 1.9, "every color stands out from white paper"


def test_an_arm_looks_the_same_in_every_figure() -> None:
    found = masking()
    looks = arm_styles(found)
    assert looks.grouped
    assert {looks.arms[arm].color for arm in MASKED if "naive" in arm} == {looks.hues["naive"].color}
    wanted = {(look.color, look.marker) for look in looks.arms.values()}
    score, cost = score_figure(found), cost_figure(found)
    assert cost is not None
    for axis in (*score.axes[:3], *cost.axes):
        assert set(drawn(axis)) == wanted
    noise, curves = noise_level_figure(found), curve_figure(found)
    assert noise is not None
    assert curves is not None
    for axis in (*noise.axes, *curves.axes):
        lines = [
            line for line in axis.lines if len(line.get_xdata()) > 2 and line.get_marker() not in ("None", "", "_")
        ]
        seen = {(line.get_color(), line.get_marker()) for line in lines}
        assert seen == (wanted - {(looks.arms["none"].color, "o")} if axis in noise.axes else wanted)


def test_styles_do_not_depend_on_finished_runs() -> None:
    found = masking()
    fewer = dataclasses.replace(found, frame=found.frame[found.frame["arm"] != "naive_0.25"])
    assert arm_styles(fewer).arms == arm_styles(found).arms
    assert len(set(arm_styles(plain(list("abcdefghijkl"))).arms.values())) == 12


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12), st.booleans())
def test_pareto_front_is_what_no_other_point_dominates(points: list[tuple[int, int]], lower: bool) -> None:
    costs, scores = [float(c) for c, _ in points], [float(s) for _, s in points]
    turned = scores if lower else [-s for s in scores]

    def dominated(i: int) -> bool:
        return any(
            costs[j] <= costs[i] and turned[j] <= turned[i] and (costs[j], turned[j]) != (costs[i], turned[i])
            for j in range(len(points))
        )

    front = pareto(costs, scores, lower)
    assert sorted(front) == [i for i in range(len(points)) if not dominated(i)]
    assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_cost_figure_shows_both_costs_with_units_and_the_front() -> None:
    frame = plain(["dear", "cheap", "silly"]).frame
    found = plain(["dear", "cheap", "silly"])
    frame = frame.assign(**{"final/clip_fd": [10.0, 20.0, 30.0], "cost/seconds": [90.0, 60.0, 70.0]})
    frame = frame.assign(**{"cost/train_flops": [4e12, 1e12, 2e12]})
    figure = cost_figure(dataclasses.replace(found, frame=frame))
    assert figure is not None
    compute, time = figure.axes
    assert compute.get_xlabel() == "training compute (TFLOP)"
    assert time.get_xlabel() == "training time (s)"
    assert compute.get_ylabel() == "CLIP-FD ↓"
    (front,) = [line for line in time.lines if line.get_label() == "Pareto front of the means"]
    assert list(front.get_xdata())[:2] == [60.0, 90.0]
    assert list(front.get_ydata()) == [20.0, 10.0, 10.0]
    assert labels(figure) == ["dear", "cheap", "silly", "Pareto front of the means"]
    low, high = compute.get_xlim()
    assert low < 1.0 < 4.0 < high
    assert (
        cost_figure(dataclasses.replace(found, frame=frame.drop(columns=["cost/seconds", "cost/train_flops"]))) is None
    )


def test_a_cost_that_all_arms_share_is_stated_in_the_title() -> None:
    found = plain(["masked", "small"])
    frame = found.frame.assign(**{"final/clip_fd": [10.0, 20.0], "cost/seconds": [90.0, 60.0]})
    frame = frame.assign(**{"cost/train_flops": [3.356e12, 3.355e12]})  # as near as steps can make them
    figure = cost_figure(dataclasses.replace(found, frame=frame))
    assert figure is not None
    (time,) = figure.axes
    assert time.get_xlabel() == "training time (s)"
    assert "All arms have the same training compute: 3.356 TFLOP." in figure.get_suptitle().replace("\n", " ")
    assert cost_figure(dataclasses.replace(found, frame=frame.drop(columns="cost/seconds"))) is None


def test_names_beside_points_of_a_hue_cover_nothing() -> None:
    figure = cost_figure(masking())
    assert figure is not None
    assert labels(figure) == ["none", "naive", "deferred", "maskdit", "Pareto front of the means"]
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert sorted({text.get_text() for text in axis.texts}) == ["0", "0.25", "0.5", "0.75"]
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_loss_ratio_is_the_paired_geometric_mean() -> None:
    found = plain(["base", "arm"])
    base, arm = [1.0, 2.0, 4.0], [1.5, 2.2, 6.8]
    frame = pd.DataFrame({"arm": ["base"] * 3 + ["arm"] * 3, "seed": [0, 1, 2] * 2, "val/loss_q1": base + arm})
    value = ratio(dataclasses.replace(found, frame=frame), "val/loss_q1", "arm")
    logs = np.log(np.divide(arm, base))
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert (value.mean, value.low, value.high) == pytest.approx(tuple(np.exp([logs.mean(), low, high])))
    assert value.n == 3


def test_noise_level_figure_has_a_line_per_other_arm_and_the_levels() -> None:
    settings = {f"id{i}": {"evaluation.p_mean": -0.6, "diffusion.p_mean": 0.0, "diffusion.p_std": 1.2} for i in (0, 1)}
    found = plain(["base", "arm"], **{f"val/loss_q{band}": [1.0, 1.0 + 0.1 * band] for band in (1, 2, 3, 4)})
    found.frame["run_id"] = list(settings)
    found = dataclasses.replace(found, configs=settings)
    assert quarter_edges(found, 4) == pytest.approx(stats.lognorm(1.2, scale=math.exp(-0.6)).ppf([0.25, 0.5, 0.75]))
    figure = noise_level_figure(found)
    assert figure is not None
    (axis,) = figure.axes
    assert labels(figure) == ["arm", "base (baseline)"]
    assert [text.get_text() for text in axis.get_xticklabels()] == [
        "q1 (cleanest)\nσ < 0.24", "q2\n0.24 – 0.55", "q3\n0.55 – 1.2", "q4 (noisiest)\nσ > 1.2",
    ]  # fmt: skip
    (line,) = [line for line in axis.lines if len(line.get_xdata()) == 4 and line.get_marker() != "_"]
    assert list(line.get_ydata()) == pytest.approx([1.1, 1.2, 1.3, 1.4])
    low, high = axis.get_ylim()
    assert low < 1.0 < 1.4 < high
    other = settings | {"id1": {"diffusion.p_mean": 0.0, "diffusion.p_std": 0.6}}
    assert noise_level_figure(dataclasses.replace(found, configs=other)) is None, "other levels, so no ratio"
    assert (
        noise_level_figure(dataclasses.replace(found, frame=found.frame.drop(columns="val/loss_q1").iloc[:1])) is None
    )
    assert not loss_by_noise_level.quarter_edges(plain(["a"]), 4)


def test_curves_have_a_mean_and_a_band_over_seeds() -> None:
    found = results("another", {"a": {}, "b": {}}, lambda s: 0.0, seeds=3)
    figure = curve_figure(dataclasses.replace(found, client=Histories()))
    assert figure is not None
    for axis, title in zip(figure.axes, ("training loss", "validation loss"), strict=True):
        assert axis.get_title("left") == title
        assert axis.get_xlabel() == "training step"
        assert axis.get_xlim() == pytest.approx((0, 1030))
        assert len(axis.lines) == 2
        assert list(axis.lines[0].get_ydata()) == pytest.approx(np.exp(-np.arange(1, 11) / 5) + 0.1)
        assert len(axis.collections) == 2
        band = axis.collections[0].get_paths()[0].vertices
        assert band[:, 1].max() == pytest.approx(math.exp(-0.2) + 0.2)
        assert band[:, 1].min() == pytest.approx(math.exp(-2))
    assert labels(figure) == ["a", "b"]
    assert "n=3 seeds" in figure.get_suptitle()


def test_the_papers_points_are_hollow_on_their_own_axis() -> None:
    figure = score_figure(masking())
    assert [axis.get_title("left") for axis in figure.axes] == ["FD ↓", "CLIP-FD ↓", "CLIP score ↑", ""]
    right = figure.axes[3]
    assert right.get_ylabel() == "paper's FID"
    values = sorted(float(line.get_ydata()[0]) for line in right.lines if len(line.get_xdata()))
    assert values == [3.79, 5.03, 15.0, 16.5]
    assert {line.get_markerfacecolor() for line in right.lines} == {"white"}
    assert PAPER_LABEL in labels(figure)
    assert "compare its order, not its values" in figure.get_suptitle().replace("\n", " ")
    figure = score_figure(plain(["a", "b"]))
    assert len(figure.axes) == 3
    assert "Inception" not in figure.get_suptitle()


def test_diverged_runs_are_crosses_at_the_top_edge() -> None:
    found = masking()
    lost = pd.DataFrame({"run_id": "x", "arm": "naive_0.9", "seed": [0, 1], "x": 0.9, "hue": "naive"})
    figure = score_figure(dataclasses.replace(found, others=lost.assign(outcome="diverged")))
    assert "diverged: no score (2 runs)" in labels(figure)
    for axis in figure.axes[:3]:
        (cross,) = [line for line in axis.lines if line.get_marker() == "x" and len(line.get_xdata())]
        assert cross.get_xdata()[0] == pytest.approx(0.9, abs=0.05)
        pixel = cross.get_transform().transform((0.9, cross.get_ydata()[0]))
        assert axis.transAxes.inverted().transform(pixel)[1] == pytest.approx(0.97)
        assert cross.get_color() == arm_styles(found).hues["naive"].color
        assert axis.get_xlim()[1] > 0.9
    failed = score_figure(dataclasses.replace(found, others=lost.assign(outcome="failed")))
    assert not any("diverged" in label for label in labels(failed))


@pytest.mark.parametrize("count", [2, 19])
def test_no_words_of_a_figure_cover_each_other(count: int) -> None:
    found = plain([f"+some_long_name_{i}" for i in range(count)])
    figure = score_figure(found)
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= layout.WIDTH
    for axis in figure.axes:
        ticks = [text for text in axis.get_xticklabels() if text.get_text()]
        assert len(ticks) == count
        boxes = [text.get_window_extent() for text in axis.get_yticklabels()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        left, right = (axis.title.get_window_extent(), axis.xaxis.label.get_window_extent())
        assert not left.overlaps(right)
        if not ticks[0].get_rotation():
            boxes = [text.get_window_extent() for text in ticks]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    words = figure._suptitle.get_window_extent()  # type: ignore[union-attr]
    assert words.x1 <= figure.bbox.x1
    assert all(words.y0 >= axis.title.get_window_extent().y1 for axis in figure.axes)


@pytest.mark.parametrize("values", [(0.0033, 0.0034, 0.0042, 0.137, 0.976), (1.0, 1.01, 2.0), (0.0, 0.5, 0.51)])
def test_numbers_of_values_close_together_cover_nothing(values: tuple[float, ...]) -> None:
    arms: dict[str, dict[str, Any]] = {f"a{i}": {"k": value} for i, value in enumerate(values)}
    found = results("another", arms, lambda s: s["k"], seeds=1, x="k", metrics=["clip_fd"])
    found = dataclasses.replace(found, frame=found.frame.assign(**{"tag.samples": "64"}))
    figure = score_figure(dataclasses.replace(found, study=dataclasses.replace(found.study, x="k")))
    figure.draw_without_rendering()
    (axis,) = figure.axes
    inside = [t for t in axis.get_xticklabels() if t.get_text() and axis.bbox.x0 <= t.get_window_extent().x1]
    boxes = [text.get_window_extent() for text in inside]
    assert len(boxes) > 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@given(st.floats(1e-3, 300), st.floats(1.61, 299))
def test_a_logarithmic_axis_has_a_few_ticks(low: float, factor: float) -> None:
    _, (axis,) = layout.panels(1)
    axis.plot([0, 1], [low, low * factor])
    layout.scale_ticks(axis, "y", [low, low * factor])
    bottom, top = axis.get_ylim()
    ticks = [tick for tick in axis.get_yticks() if bottom <= tick <= top]
    assert axis.get_yscale() == "log"
    assert 2 <= len(ticks) <= 10


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.00075, 0.0015, 0.003, 0.006, 0.012], True),  # rates that double
        ([1.0, 2.0, 4.0, 8.0], True),
        ([0.25, 0.5, 0.75, 0.875], False),
        ([0.0, 0.01, 0.1, 0.3], False),  # 0 has no place on a logarithmic axis
        ([1.0, 4.0], False),
        ([0.01, 0.1, 0.3], True),
    ],
)
def test_an_axis_is_logarithmic_if_its_values_are_evenly_spaced_there(values: list[float], log: bool) -> None:
    assert StudyAxis.of(pd.Series(values)).log == log


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([2, 2], "n=2 pairs; bars: 95% interval over pairs, clipped at the panel's edge. Below 1 is better."),
        ([1, 1], "n=1 pair; no interval at n=1. Below 1 is better."),
        ([1, 2], "n=1 to 2 pairs; bars: 95% interval over pairs, clipped at the panel's edge. Below 1 is better."),
    ],
)
def test_a_noise_level_figure_states_its_number_of_pairs(pairs: list[int], words: str) -> None:
    rows = [("base", seed, 1.0) for seed in (0, 1)]
    rows += [(arm, seed, 1.2) for arm, count in zip(("one", "two"), pairs, strict=True) for seed in range(count)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "val/loss_q1"]).assign(run_id="id", hue="", x="")
    found = results("another", {"base": {}, "one": {}, "two": {}}, lambda s: 0.0, baseline="base")
    figure = noise_level_figure(dataclasses.replace(found, frame=frame))
    assert figure is not None
    texts = " ".join(text.get_text() for text in [*figure.texts, *(t for axis in figure.axes for t in axis.texts)])
    assert words in " ".join(f"{texts} {figure.get_suptitle()}".split())
