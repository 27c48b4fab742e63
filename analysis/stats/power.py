"""How many seeds a paired comparison would need: the power of Student's t test at the spread that was observed."""

from __future__ import annotations

import bisect
import math
from functools import cache

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
MOST = 100  # seeds; a count beyond it is said to be so
NODES = 400  # quantiles of the spread's distribution that stand for it


def power(effect: float, n: int) -> float:
    """Chance that a two-sided paired t test over `n` seeds finds a true difference of `effect` standard deviations."""
    if not 2 <= n <= MOST:
        return math.nan
    # |t| > c means Z + effect sqrt(n) > c S, or < -c S, with S^2 a chi square over its degrees of freedom.
    beyond, centre = _bounds(n), abs(effect) * math.sqrt(n)
    return float((special.ndtr(centre - beyond) + special.ndtr(-beyond - centre)).mean())


def seeds_needed(mean: float, deviation: float) -> int | None:
    """Least n with 80% power at alpha 0.05 if truth is as observed; None where it is over MOST, or can't be told.

    A plan made from few seeds is rough: the observed spread itself is known within a factor of several at n = 2 or 3.
    """
    if not (math.isfinite(mean) and math.isfinite(deviation)) or mean == 0:
        return None
    effect = abs(mean) / deviation if deviation > 0 else math.inf
    n = bisect.bisect_left(range(2, MOST + 1), POWER, key=lambda n: power(effect, n)) + 2
    return n if n <= MOST else None


def format_seeds_needed(needed: int | None) -> str:
    """`about 7 seeds needed` or `over 100 seeds needed`."""
    return f"over {MOST} seeds needed" if needed is None else f"about {needed} seeds needed"


@cache
def _bounds(n: int) -> np.ndarray:
    """c S at the quantiles of S. (scipy's noncentral t is NaN for large effects.)"""
    middles = (np.arange(NODES) + 0.5) / NODES
    return stats.t.ppf(1 - ALPHA / 2, n - 1) * np.sqrt(stats.chi2.ppf(middles, n - 1) / (n - 1))
