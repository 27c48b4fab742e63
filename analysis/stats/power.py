"""Compute the power of a paired t test, and the number of seeds that it needs."""

from __future__ import annotations

import bisect
import math
from functools import cache

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
MAX_SEEDS = 100  # the largest number of seeds that is computed
QUANTILES = 400  # that approximate the distribution of the observed standard deviation


def power(effect: float, n: int) -> float:
    """Return the power of a two-sided paired t test at ALPHA.

    Args:
        effect: the true difference, in standard deviations of the differences.
        n: number of seeds.

    Returns:
        From 0 to 1; NaN unless 2 <= n <= MAX_SEEDS.
    """
    if not 2 <= n <= MAX_SEEDS:
        return math.nan
    # |t| > c means Z + effect sqrt(n) > c S, or < -c S, with S^2 a chi square over its degrees of freedom.
    beyond, center = _bounds(n), abs(effect) * math.sqrt(n)
    return float((special.ndtr(center - beyond) + special.ndtr(-beyond - center)).mean())


def seeds_needed(mean: float, deviation: float) -> int | None:
    """Return the smallest number of seeds with 80% power at alpha 0.05.

    The observed effect and standard deviation are assumed. It is a rough estimate with few seeds: at n = 2 or 3 the
    observed standard deviation may be wrong by a factor of several.

    Args:
        mean: observed mean difference.
        deviation: observed standard deviation of the differences.

    Returns:
        At least 2; None if it exceeds MAX_SEEDS or can't be computed.
    """
    if not (math.isfinite(mean) and math.isfinite(deviation)) or mean == 0:
        return None
    effect = abs(mean) / deviation if deviation > 0 else math.inf
    n = bisect.bisect_left(range(2, MAX_SEEDS + 1), POWER, key=lambda n: power(effect, n)) + 2
    return n if n <= MAX_SEEDS else None


def format_seeds_needed(needed: int | None) -> str:
    """Return `about 7 seeds needed` or `over 100 seeds needed`.

    Args:
        needed: as `seeds_needed` returns it.
    """
    return f"over {MAX_SEEDS} seeds needed" if needed is None else f"about {needed} seeds needed"


@cache
def _bounds(n: int) -> np.ndarray:
    """Return c S at the quantiles of S; scipy's noncentral t is NaN for large effects."""
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return stats.t.ppf(1 - ALPHA / 2, n - 1) * np.sqrt(stats.chi2.ppf(middles, n - 1) / (n - 1))
