"""Means, intervals and paired differences against scipy and against laws that hold for any numbers."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import results
from scipy import stats

from analysis.report.sentences import comparison_sentences
from analysis.stats.paired import differences, paired_test, sentence
from microdit.common.numbers import Estimate, estimate, format_number, signed

VALUES = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=8)


@given(VALUES)
def test_interval_is_scipys(values: list[float]) -> None:
    found = estimate(values)
    spread = stats.sem(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if spread > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-6)


@given(VALUES, st.floats(-100, 100))
def test_shifting_the_seeds_shifts_mean_and_keeps_width(values: list[float], shift: float) -> None:
    one, other = estimate(values), estimate([value + shift for value in values])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert other.half == pytest.approx(one.half, abs=1e-6)


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = estimate([12.5])
    assert not found.has_interval
    assert math.isnan(found.half)
    assert str(found) == "12.50 (n=1)"


def test_no_seed_and_values_that_are_not_numbers() -> None:
    assert str(estimate([])) == "-"
    assert estimate([1.0, math.nan, 3.0, math.inf]).n == 2


def runs(**arms: dict[int, float]) -> pd.DataFrame:
    rows = [{"arm": arm, "seed": seed, "score": value} for arm, found in arms.items() for seed, value in found.items()]
    return pd.DataFrame(rows)


def paired(frame: pd.DataFrame, arm: str, against: str) -> Estimate:
    return paired_test(differences(frame, "score", arm, against)).difference


def test_differences_are_paired_by_seed() -> None:
    frame = runs(none={0: 100.0, 1: 200.0, 2: 300.0}, naive={2: 305.0, 0: 104.0, 1: 206.0})
    found = paired(frame, "naive", "none")
    low, high = stats.t.interval(0.95, 2, 5.0, stats.sem([4.0, 6.0, 5.0]))
    assert (found.low, found.high) == pytest.approx((low, high))
    unpaired = estimate(frame.loc[frame["arm"] == "naive", "score"])
    assert found.half < unpaired.half / 10  # what the seeds share cancels


def test_only_shared_seeds_are_compared() -> None:
    frame = runs(none={0: 1.0, 1: 2.0}, naive={1: 5.0, 2: 9.0})
    found = paired(frame, "naive", "none")
    assert (found.n, found.mean) == (1, 3.0)
    assert paired(runs(none={0: 1.0}, naive={1: 2.0}), "naive", "none").n == 0


@pytest.mark.parametrize(
    ("difference", "p", "lower", "words"),
    [
        (Estimate(5.0, 1.0, 3), 0.0123, True, "none: +5.0 [4.0, 6.0] FD over n=3 seeds, Holm p = 0.012 (worse)"),
        (Estimate(5.0, 1.0, 3), 0.01, False, "(better)"),
        (Estimate(-5.0, 1.0, 3), 1e-9, True, "-5.0 [-6.0, -4.0] FD over n=3 seeds, Holm p < 0.0001 (better)"),
        (Estimate(5.0, 9.0, 2), 0.4, True, "within seed noise of none at n=2: +5.0 [-4.0, 14.0] FD, Holm p = 0.40"),
        (Estimate(5.0, 4.0, 3), 0.06, True, "within seed noise of none"),
        (Estimate(5.0, math.nan, 1), math.nan, True, "n=1; without an interval it can't be told from seed noise"),
        (Estimate(math.nan, math.nan, 0), math.nan, True, "because they share no seed"),
    ],
)
def test_sentences(difference: Estimate, p: float, lower: bool, words: str) -> None:
    assert words in sentence("naive", "none", difference, p, "FD", lower)


@given(st.floats(0.001, 1e5))
def test_printed_numbers_keep_their_value(value: float) -> None:
    assert float(format_number(value)) == pytest.approx(value, rel=1e-3)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_printed_differences_read_back_as_the_interval(mean: float, half: float) -> None:
    words = signed(Estimate(mean, half, 3))
    low, high = (float(part) for part in words.partition("[")[2].rstrip("]").split(","))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.051 * half + 1e-9)


def test_many_differences_of_one_seed_are_one_sentence() -> None:
    arms = {name: {"model.depth": depth} for name, depth in (("base", 1), ("a", 2), ("b", 3))}
    found = results("depths", arms, lambda settings: settings["model.depth"], seeds=1, noise=0.0)
    [said] = comparison_sentences(dataclasses.replace(found, study=dataclasses.replace(found.study, baseline="base")))
    assert said.startswith("CLIP-FD against base at n=1; without an interval it can't be told from seed noise: a +")
    assert ", b +" in said


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [
        (12345.0, False, "12345"),
        (123.456, False, "123.5"),
        (0.00012345, False, "0.0001234"),
        (999999.0, True, "+999999"),
        (1e6, True, "+1e+06"),
        (1e6, False, "1e+06"),
        (-2.5e-5, True, "-2.5e-05"),
        (0.0, True, "0"),
        (math.inf, False, "-"),
    ],
)
def test_numbers_in_print(value: float, sign: bool, text: str) -> None:
    assert format_number(value, sign=sign) == text


def test_nothing_has_neither_mean_nor_interval() -> None:
    found = estimate([math.nan])
    assert found.n == 0
    assert math.isnan(found.mean)
    assert math.isnan(found.half)
