"""Test paired tests against scipy, Holm against its definition, and coverage."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import results
from scipy import stats

from analysis.stats.paired import (
    against_baseline,
    differences,
    hedges,
    holm,
    median_interval,
    p_value,
    paired_test,
    sentence,
    winner,
)
from analysis.stats.power import format_seeds_needed, power, seeds_needed
from microdit.common.numbers import Estimate

P = st.lists(st.floats(0, 1), min_size=1, max_size=9)


def closed_testing(p: list[float]) -> list[float]:
    """Return Holm's p by definition: Bonferroni's test of every intersection."""
    found = []
    for i in range(len(p)):
        rest = [j for j in range(len(p)) if j != i]
        subsets = (subset for size in range(len(p)) for subset in itertools.combinations(rest, size))
        found.append(max(min(1.0, (len(s) + 1) * min(p[i], *(p[j] for j in s), 1.0)) for s in subsets))
    return found


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P)
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    assert holm(p) == pytest.approx(closed_testing(p))


@given(P)
def test_holm_keeps_the_order_and_is_between_p_and_bonferroni(p: list[float]) -> None:
    found = holm(p)
    assert all(raw <= adjusted <= min(1.0, len(p) * raw) + 1e-12 for raw, adjusted in zip(p, found, strict=True))
    assert np.all(np.diff(np.array(found)[np.argsort(p)]) >= 0)


def test_a_missing_p_is_no_test() -> None:
    found = holm([0.01, math.nan, 0.04])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_p_is_scipys(n: int) -> None:
    a, b = np.random.default_rng(n).normal(size=(2, n))
    assert paired_test(a - b).p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_effect_sizes() -> None:
    found = paired_test([1.0, 2.0, 3.0, 6.0])
    assert found.d_z == pytest.approx(3.0 / np.std([1, 2, 3, 6], ddof=1))
    assert found.g_z == pytest.approx(found.d_z * 0.7236, rel=1e-3)  # J(3), of Hedges' (1981) table
    assert hedges(10) == pytest.approx(0.9228, abs=1e-4)
    assert math.isnan(paired_test([1.0, 2.0]).g_z)


def test_hedges_factor_removes_the_bias() -> None:
    values = np.random.default_rng(0).normal(0.5, 1.0, (20_000, 4))
    d = values.mean(axis=1) / values.std(axis=1, ddof=1)
    assert d.mean() > 0.6
    assert (hedges(3) * d).mean() == pytest.approx(0.5, abs=0.015)


def test_one_seed_has_no_p() -> None:
    found = paired_test([3.0])
    assert (found.n, found.difference.mean) == (1, 3.0)
    assert all(math.isnan(value) for value in (found.p, found.d_z, found.g_z))


def test_equal_differences() -> None:
    assert paired_test([2.0, 2.0, 2.0]).p == 0
    assert paired_test([0.0, 0.0]).p == 1


def test_intervals_cover_the_truth_in_95_of_100_studies() -> None:
    """Coverage of 2000 studies per n is 95% within 3.5 binomial deviations."""
    rng, truth, studies = np.random.default_rng(7), 1.5, 2000
    for n in (2, 3, 5):
        covered = 0
        for _ in range(studies):
            shift = rng.normal(0, 50, n)
            first, second = shift + truth + rng.normal(0, 2, n), shift + rng.normal(0, 1, n)
            test = paired_test(first - second)
            covered += test.difference.low <= truth <= test.difference.high
            assert (test.difference.low <= 0 <= test.difference.high) == (test.p >= 0.05), "p and interval are one test"
        assert abs(covered / studies - 0.95) < 3.5 * math.sqrt(0.05 * 0.95 / studies)


def test_holm_keeps_the_familywise_error() -> None:
    """With eight arms equal to the baseline, at most 5% of studies find a difference."""
    rng, studies, n = np.random.default_rng(3), 2000, 4
    scores = rng.normal(size=(studies, 9, n))
    p = stats.ttest_1samp(scores[:, 1:] - scores[:, :1], 0, axis=2).pvalue
    corrected = sum(min(holm(values)) < 0.05 for values in p)
    assert (p.min(axis=1) < 0.05).mean() > 0.15
    assert corrected / studies < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / studies)


ARMS = {"base": {"gain": 0.0}, "good": {"gain": -9.0}, "same": {"gain": 0.0}}


def test_the_family_is_the_studys_arms_per_metric() -> None:
    frame = results("s", ARMS, lambda settings: settings["gain"]).frame
    found = against_baseline(frame, "base", ["clip_fd", "clip_score"])
    assert list(zip(found["metric"], found["arm"], strict=True)) == [
        (metric, arm) for metric in ("clip_fd", "clip_score") for arm in ("good", "same")
    ]
    assert (found["n"] == 4).all()
    assert found["p_holm"].tolist() == pytest.approx(holm(found["p"][:2]) + holm(found["p"][2:]))
    assert found.loc[0, "p_holm"] < 0.01 < 0.05 < found.loc[1, "p_holm"]
    assert found.loc[0, "median"] == pytest.approx(np.median(differences(frame, "final/clip_fd", "good", "base")))
    assert against_baseline(frame, "absent", ["clip_fd"]).empty


def test_bold_is_for_an_arm_that_beats_all_others() -> None:
    def best(gains: dict[str, float], **changes: int) -> str | None:
        arms = {arm: {"gain": gain} for arm, gain in gains.items()}
        return winner(results("s", arms, lambda s: s["gain"], **changes).frame, "clip_fd", True)

    assert best({"a": 0.0, "b": -9.0, "c": 0.0}) == "b"
    assert best({"a": 0.0, "b": -9.0, "c": -9.0}) is None
    assert best({"a": 0.0, "b": -9.0}, seeds=1) is None


def test_median_interval_is_seeded_and_within_the_values() -> None:
    values = [3.0, 1.0, 2.0, 10.0, 4.0]
    median, low, high = median_interval(values)
    assert median == 3.0
    assert 1.0 <= low < 3.0 < high <= 10.0
    assert median_interval(values) == (median, low, high)
    assert math.isnan(median_interval([2.0])[1])


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (0.3, 90)])
def test_seeds_needed_are_those_of_the_tables(effect: float, seeds: int) -> None:
    """G*Power's paired t test: 80% power, alpha 0.05, two-sided."""
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(-3 * effect, 3.0) == seeds


def test_power_is_how_often_a_study_finds_the_effect() -> None:
    rng = np.random.default_rng(5)
    found = stats.ttest_1samp(rng.normal(1.2, 1.0, (20_000, 6)), 0, axis=1).pvalue < 0.05
    assert power(1.2, 6) == pytest.approx(found.mean(), abs=0.012)


def test_more_seeds_than_100_are_not_counted() -> None:
    assert seeds_needed(0.1, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None
    assert format_seeds_needed(None) == "over 100 seeds needed"
    assert format_seeds_needed(7) == "about 7 seeds needed"


def test_differences_skip_seeds_without_a_finite_value() -> None:
    rows = [("a", 0, 1.0), ("b", 0, 3.0), ("a", 1, math.nan), ("b", 1, 3.0), ("a", 2, 5.0), ("b", 2, math.inf)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "score"])
    assert differences(frame, "score", "b", "a").tolist() == [2.0]


def test_every_column_of_a_comparison() -> None:
    frame = results("s", ARMS, lambda settings: settings["gain"]).frame
    row = against_baseline(frame, "base", ["clip_fd"]).iloc[0]
    scores = frame.pivot_table(index="seed", columns="arm", values="final/clip_fd")
    values = (scores["good"] - scores["base"]).to_numpy()
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    d_z = values.mean() / values.std(ddof=1)
    expected = {
        "difference": values.mean(),
        "low": low,
        "high": high,
        "deviation": values.std(ddof=1),
        "d_z": d_z,
        "g_z": d_z * 0.7236,  # J(3), of Hedges' (1981) table
        "p": stats.ttest_1samp(values, 0).pvalue,
        "median": np.median(values),
    }
    assert row[[*expected]].to_dict() == pytest.approx(expected, rel=1e-3)
    assert row[["metric", "arm", "against", "n"]].tolist() == ["clip_fd", "good", "base", 4]
    assert values.min() <= row["median_low"] < row["median"] < row["median_high"] <= values.max()
    without = against_baseline(frame, "base", ["clip_fd"], medians=False).iloc[0]
    assert without[["median", "median_low", "median_high"]].isna().all()
    assert without["p"] == row["p"]


@pytest.mark.parametrize(("value", "effect", "p"), [(2.0, math.inf, 0.0), (-2.0, -math.inf, 0.0), (0.0, 0.0, 1.0)])
def test_equal_differences_have_an_interval_of_no_width(value: float, effect: float, p: float) -> None:
    found = paired_test([value] * 3)
    assert (found.difference.low, found.difference.high, found.n) == (value, value, 3)
    assert (found.deviation, found.p, found.d_z, found.g_z) == (0.0, p, effect, effect)
    assert math.isnan(paired_test([value] * 2).g_z)


def test_the_better_of_two_arms_wins_either_way() -> None:
    frame = results("s", {"a": {"gain": 0.0}, "b": {"gain": -9.0}}, lambda s: s["gain"]).frame
    assert winner(frame, "clip_fd", lower_is_better=True) == "b"
    assert winner(frame, "clip_score", lower_is_better=False) == "b"
    assert winner(frame[frame["arm"] == "b"], "clip_fd", lower_is_better=True) is None


@pytest.mark.parametrize(
    ("p", "text"), [(1e-4, "p = 0.00010"), (0.99e-4, "p < 0.0001"), (0.0123, "p = 0.012"), (math.nan, "no p")]
)
def test_p_values_in_print(p: float, text: str) -> None:
    assert p_value(p) == text


@pytest.mark.parametrize(("p", "word"), [(0.05, "within seed noise of"), (0.0499, "differs from")])
def test_a_difference_is_beyond_noise_below_five_percent(p: float, word: str) -> None:
    assert f"a: {word} b" in sentence("a", "b", Estimate(1.0, 0.5, 3), p, "FD", lower_is_better=True)
