"""Test differences paired by seed, and the sentences about them."""

import dataclasses
import math

import pandas as pd
import pytest
from planted import results
from scipy import stats

from analysis.report.sentences import comparison_sentences
from analysis.stats.paired import UNTESTED, differences, paired_test, sentence
from microdit.common.numbers import Estimate, estimate


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
    assert found.half < unpaired.half / 10  # the effect that the seeds share cancels


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
        (Estimate(5.0, math.nan, 1), math.nan, True, f"n=1; {UNTESTED}."),
        (Estimate(math.nan, math.nan, 0), math.nan, True, "because they share no seed"),
    ],
)
def test_sentences(difference: Estimate, p: float, lower: bool, words: str) -> None:
    assert words in sentence("naive", "none", difference, p, "FD", lower)


def test_many_differences_of_one_seed_are_one_sentence() -> None:
    arms = {name: {"model.depth": depth} for name, depth in (("base", 1), ("a", 2), ("b", 3))}
    found = results("depths", arms, lambda settings: settings["model.depth"], seeds=1, noise=0.0)
    [said] = comparison_sentences(dataclasses.replace(found, study=dataclasses.replace(found.study, baseline="base")))
    assert said.startswith(f"CLIP-FD against base at n=1; {UNTESTED}: a +")
    assert ", b +" in said
