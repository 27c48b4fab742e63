"""Means over seeds with Student's 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and half the width of its 95% interval, NaN where n < 2 gives none."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def has_interval(self) -> bool:
        return self.n >= 2

    def __str__(self) -> str:
        """`12.3 ± 1.2`, `12.3 (n=1)` or `-`: as many digits as the interval warrants."""
        if self.n == 0:
            return "-"
        if not self.has_interval:
            return f"{number(self.mean)} (n=1)"
        places = decimals(self.half)
        return f"{self.mean:.{places}f} ± {self.half:.{places}f}"


def estimate(values: Sequence[float] | pd.Series) -> Estimate:
    """Mean and Student-t 95% interval of independent `values`; values that aren't finite are left out."""
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    n = len(data)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    if n == 1:
        return Estimate(float(data[0]), math.nan, 1)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * float(data.std(ddof=1)) / math.sqrt(n)
    return Estimate(float(data.mean()), half, n)


def signed(difference: Estimate) -> str:
    """`+1.2 [0.4, 2.0]`, the interval only where there is one."""
    if difference.n == 0:
        return "-"
    if not difference.has_interval:
        return f"{number(difference.mean, sign=True)} (n=1)"
    places = decimals(difference.half)
    return f"{difference.mean:+.{places}f} [{difference.low:.{places}f}, {difference.high:.{places}f}]"


def decimals(half: float) -> int:
    """Decimal places that show two significant digits of an interval's half-width."""
    return 3 if half == 0 or not math.isfinite(half) else min(6, max(0, 1 - math.floor(math.log10(half))))


def number(value: float, sign: bool = False, digits: int = 4) -> str:
    """`digits` significant digits, never in exponent form between 1e-4 and 1e6."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if 1e-4 <= abs(value) < 1e6 else None
    if places is None:
        return f"{value:{'+' if sign else ''}.{digits}g}"
    return f"{value:{'+' if sign else ''}.{places}f}"
