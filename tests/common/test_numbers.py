"""Test means, intervals and printed numbers against scipy and general laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from microdit.common.numbers import Estimate, estimate, format_number, format_significant, signed

VALUES = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=8)


@given(VALUES)
def test_interval_equals_scipys(values: list[float]) -> None:
    found = estimate(values)
    spread = stats.sem(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if spread > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-6)


@given(VALUES, st.floats(-100, 100))
def test_shifting_the_values_shifts_the_mean_and_keeps_the_interval(values: list[float], shift: float) -> None:
    one, other = estimate(values), estimate([value + shift for value in values])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert other.half == pytest.approx(one.half, abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    found = estimate([12.5])
    assert not found.has_interval
    assert math.isnan(found.half)
    assert str(found) == "12.50 (n=1)"


def test_values_that_are_not_finite_are_dropped() -> None:
    assert str(estimate([])) == "-"
    assert estimate([1.0, math.nan, 3.0, math.inf]).n == 2


def test_no_values_have_neither_mean_nor_interval() -> None:
    found = estimate([math.nan])
    assert found.n == 0
    assert math.isnan(found.mean)
    assert math.isnan(found.half)


@given(st.floats(0.001, 1e5))
def test_printed_numbers_keep_their_value(value: float) -> None:
    assert float(format_number(value)) == pytest.approx(value, rel=1e-3)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_printed_differences_parse_to_the_interval(mean: float, half: float) -> None:
    words = signed(Estimate(mean, half, 3))
    low, high = (float(part) for part in words.partition("[")[2].rstrip("]").split(","))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.051 * half + 1e-9)


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
def test_numbers_are_formatted(value: float, sign: bool, text: str) -> None:
    assert format_number(value, sign=sign) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567.0, "1,234,567"),
        (12345.6, "12,346"),
        (99999.6, "100,000"),
        (1.23456, "1.235"),
        (0.000123456, "0.0001235"),
        (1e-9, "0.000000001000"),
        (0.0, "0"),
        (math.nan, "nan"),
    ],
)
def test_significant_digits_without_exponent(value: float, text: str) -> None:
    assert format_significant(value) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(12.34, 1.24, 3), "12.3 ± 1.2"),
        (Estimate(1606.0, 123.0, 3), "1606 ± 123"),
        (Estimate(-0.04, 1.2, 3), "0.0 ± 1.2"),
        (Estimate(5.0, 0.0, 2), "5.000 ± 0.000"),
    ],
)
def test_the_interval_decides_the_decimals(found: Estimate, text: str) -> None:
    assert str(found) == text


def test_the_interval_is_for_the_95_percent_level() -> None:
    # 12.706 is t at 0.975 with one degree of freedom, from printed tables
    assert estimate([1.0, 3.0]).half == pytest.approx(12.706, rel=1e-4)
    assert str(estimate([10.0, 12.0])) == "11 ± 13"
