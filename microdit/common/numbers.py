"""Compute means with Student's 95% intervals, and format numbers, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEVEL = 0.95  # confidence level of all intervals
MAX_DECIMALS = 6
MIN_PLAIN, MAX_PLAIN = 1e-4, 1e6  # `format_number` writes exponents outside this range
GROUPED_FROM = 1e5  # `format_significant` groups the digits of larger numbers and drops their decimals


@dataclass(frozen=True)
class Estimate:
    """Hold a mean over `n` seeds and the half-width of its 95% interval.

    `half` is NaN if n < 2.
    """

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Return the lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Return the upper end of the interval."""
        return self.mean + self.half

    @property
    def has_interval(self) -> bool:
        """Return whether there are enough seeds for an interval."""
        return self.n >= 2

    def __str__(self) -> str:
        """Return `12.3 ± 1.2`, `12.3 (n=1)` or `-`.

        The interval's width decides the number of digits.
        """
        if self.n == 0:
            return "-"
        if not self.has_interval:
            return f"{format_number(self.mean)} (n=1)"
        places = decimals(self.half)
        return f"{_rounded(self.mean, places):.{places}f} ± {self.half:.{places}f}"


def estimate(values: ArrayLike) -> Estimate:
    """Return the mean and Student's 95% interval of independent values.

    Args:
        values: one per seed; values that are not finite are dropped.
    """
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    n = len(data)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(data[0]), math.nan, 1)
    from scipy.special import stdtrit  # slow to import, and no plan needs it

    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(data.std(ddof=1)) / math.sqrt(n)
    return Estimate(float(data.mean()), half, n)


def signed(difference: Estimate) -> str:
    """Return `+1.2 [0.4, 2.0]`, `+1.2 (n=1)` or `-`."""
    if difference.n == 0:
        return "-"
    if not difference.has_interval:
        return f"{format_number(difference.mean, sign=True)} (n=1)"
    places = decimals(difference.half)
    mean, low, high = (_rounded(value, places) for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def decimals(half: float) -> int:
    """Return the number of decimals that shows two significant digits.

    Args:
        half: half-width of an interval.

    Returns:
        0 to 6; 3 if `half` is 0 or not finite.
    """
    return 3 if half == 0 or not math.isfinite(half) else min(MAX_DECIMALS, max(0, 1 - math.floor(math.log10(half))))


def format_number(value: float, sign: bool = False, digits: int = 4) -> str:
    """Return a number with significant digits, and an exponent only if needed.

    Numbers from 1e-4 to 1e6 have no exponent.

    Args:
        value: NaN and infinity are printed as `-`.
        sign: print a plus sign.
        digits: significant digits.
    """
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    plus = "+" if sign else ""
    if not MIN_PLAIN <= abs(value) < MAX_PLAIN:
        return f"{value:{plus}.{digits}g}"
    return f"{value:{plus}.{_places(value, digits)}f}"


def format_significant(value: float, digits: int = 4) -> str:
    """Return a number with grouped thousands and never an exponent.

    Args:
        value: NaN and infinity are printed as such.
        digits: significant digits; all digits before the point are printed.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= GROUPED_FROM else f"{value:,.{_places(value, digits)}f}"


def _places(value: float, digits: int) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def _rounded(value: float, places: int) -> float:
    """Return `value` rounded, with 0 in place of -0."""
    return round(value, places) + 0.0
