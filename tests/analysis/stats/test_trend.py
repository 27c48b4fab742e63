"""Test trends: Page's L against all permutations, error rates, and missing arms."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.stats.trend import complete_blocks, page, trend, trend_of

AXIS = np.array([0.25, 0.5, 0.75, 0.875])


def brute_page(scores: np.ndarray) -> float:
    """Return the two-sided p by enumerating every order of every seed's values."""
    count = scores.shape[1]
    ranks = scores.argsort(axis=1).argsort(axis=1) + 1
    places = np.arange(1, count + 1)
    seen = (ranks * places).sum()
    orders = [np.dot(places, order) for order in itertools.permutations(places)]
    sums = np.array([sum(chosen) for chosen in itertools.product(orders, repeat=len(scores))])
    return min(1.0, 2 * min((sums >= seen).mean(), (sums <= seen).mean()))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 5)])
def test_page_matches_all_permutations(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    for _ in range(4):
        scores = rng.normal(size=shape) + rng.normal() * np.arange(shape[1])
        assert page(scores) == pytest.approx(brute_page(scores))


def test_two_seeds_are_enough_for_an_order() -> None:
    """Page's L detects an order that the interval of two slopes does not."""
    scores = np.array([[1.0, 2.0, 3.5, 9.0], [50.0, 50.5, 51.0, 52.0]])
    found = trend(AXIS, scores)
    assert found.test == "Page's L"
    assert found.p == pytest.approx(2 / math.factorial(4) ** 2)
    assert found.slope.low < 0 < found.slope.mean
    assert (found.sign, found.rho, found.steps) == (1, 1.0, (3, 3))


@pytest.mark.parametrize(
    ("seeds", "count", "test"), [(2, 3, "t test"), (3, 3, "Page"), (2, 4, "Page"), (5, 2, "t test")]
)
def test_the_design_chooses_the_test(seeds: int, count: int, test: str) -> None:
    scores = np.random.default_rng(0).normal(size=(seeds, count))
    assert trend(np.arange(1.0, count + 1), scores).test.startswith(test)


def test_slopes_are_least_squares_per_unit_or_doubling() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(3, 4))
    parameters = np.array([1.0e6, 1.2e6, 1.4e6, 1.8e6])
    for axis, across, unit in (
        (AXIS, AXIS, "unit"),
        (np.array([1.0, 2, 4, 8]), np.arange(4.0), "doubling"),
        (parameters, parameters / 1e6, "million"),  # a slope per parameter would have too many zeros
    ):
        slopes = [np.polyfit(across, row, 1)[0] for row in scores]
        found = trend(axis, scores)
        assert found.unit == unit
        assert found.slope.mean == pytest.approx(np.mean(slopes))
        assert found.deviation == pytest.approx(np.std(slopes, ddof=1))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)])
def test_rank_correlations_are_scipys(order: tuple[int, ...]) -> None:
    scores = np.array([[float(value) ** 2 for value in order]])
    assert trend(AXIS, scores).rho == pytest.approx(stats.spearmanr(AXIS, scores[0]).statistic)


def test_one_seed_has_no_p() -> None:
    found = trend(AXIS, np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert (found.n, found.sign) == (1, 1)
    assert math.isnan(found.p)


@pytest.mark.parametrize(("seeds", "count", "growth"), [(2, 4, 1), (3, 3, 1), (5, 5, 1), (3, 4, 3)])
def test_noise_alone_is_rarely_a_trend(seeds: int, count: int, growth: float) -> None:
    """Seeds have common effects, and the spread grows along the axis."""
    rng, studies = np.random.default_rng(seeds), 400
    axis = np.arange(1.0, count + 1)
    spread = np.linspace(1, growth, count)
    noise = rng.normal(size=(studies, seeds, count)) * spread + 30 * rng.normal(size=(studies, seeds, 1))
    assert np.mean([trend(axis, scores).p < 0.05 for scores in noise]) < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / studies)


def test_a_diverged_arm_does_not_remove_the_others() -> None:
    table = pd.DataFrame({1.0: [5.0, 6, 7], 2.0: [4.0, 5, 6], 4.0: [3.0, 4, 5], 8.0: [np.nan, np.nan, 9.0]})
    assert list(complete_blocks(table).columns) == [1.0, 2.0, 4.0]
    assert len(complete_blocks(table)) == 3


def test_an_unfinished_seed_is_left_out() -> None:
    table = pd.DataFrame({4.0: [3.0, 4, np.nan], 1.0: [5.0, 6, 7], 2.0: [4.0, 5, np.nan]})
    found = trend_of(table)
    assert found is not None
    assert (found.values, found.n) == ((1.0, 2.0, 4.0), 2)
    assert trend_of(table[[1.0]]) is None


def test_a_seed_of_equal_scores_has_no_rank_correlation() -> None:
    found = trend(AXIS, np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]]))
    assert found.rho == pytest.approx(0.5)  # the mean of 0 and 1


def test_a_whole_table_keeps_all_its_values() -> None:
    table = pd.DataFrame({8.0: [1.0, 2], 1.0: [3.0, 4], 2.0: [5.0, 6], 4.0: [7.0, 8]})
    assert list(complete_blocks(table).columns) == [1.0, 2.0, 4.0, 8.0]
    whole_numbers = trend_of(pd.DataFrame({1: [1, 2], 2: [3, 4], 4: [5, 6]}))
    assert whole_numbers is not None
    assert whole_numbers.values == (1.0, 2.0, 4.0)
    assert all(isinstance(value, float) for value in whole_numbers.values)


def test_three_values_are_kept_even_if_one_seed_is_complete() -> None:
    table = pd.DataFrame({1.0: [1.0, 2.0], 2.0: [3.0, np.nan], 4.0: [5.0, 6.0]})
    assert list(complete_blocks(table).columns) == [1.0, 2.0, 4.0]
    assert len(complete_blocks(table)) == 1
