"""Test whether a score rises or falls along an ordered axis.

Each seed is a block with all values of the axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stats.paired import paired_test
from analysis.stats.power import ALPHA
from microdit.common.numbers import Estimate

MIN_LOG_RATIO = 4.0  # from this ratio of the largest to the smallest value, slopes are per doubling instead of per unit
UNITS = {1e9: "billion", 1e6: "million", 1e3: "thousand", 0.0: "unit"}  # by the smallest maximum of the axis
MIN_AXIS_VALUES = 3  # of a trend; two values are a paired comparison


@dataclass(frozen=True)
class Trend:
    """A score along an axis over `n` seeds.

    Attributes:
        slope: mean over seeds of each seed's least-squares slope, with Student's interval.
        deviation: standard deviation of the slopes over seeds.
        unit: of the axis, for the slope.
        rho: mean Spearman correlation within a seed.
        p: two-sided p of `test`; NaN if n < 2.
        steps: number of neighboring means that change in the slope's direction, and the number of neighbors.
        values: of the axis.
    """

    slope: Estimate
    deviation: float
    unit: str
    rho: float
    p: float
    test: str
    steps: tuple[int, int]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return self.slope.n

    @property
    def sign(self) -> int:
        """Return the direction of the mean slope: 1, 0 or -1."""
        return int(np.sign(self.slope.mean)) if math.isfinite(self.slope.mean) else 0


def trend(axis: np.ndarray, scores: np.ndarray) -> Trend:
    """Return the trend of scores along an axis.

    Page's L (Page 1963) ranks values within a seed, which removes effects that a seed has on all arms. It is exact if a
    seed's values are exchangeable under the null hypothesis. So it is valid at two seeds, when a t test of two slopes
    has one degree of freedom and an interval of 12.7 standard errors. Its error rate also stays below 5% if the spread
    triples along the axis. If its smallest possible p exceeds 0.05 (two values, or three at two seeds), the t test of
    the slopes replaces it; only the design decides that. The interval of the slope is always Student's.

    Args:
        axis: (values,) ascending.
        scores: (seeds, values).
    """
    seeds, count = scores.shape
    log = bool(axis[0] > 0 and axis[-1] / axis[0] >= MIN_LOG_RATIO)
    size, unit = next((size or 1.0, word) for size, word in UNITS.items() if np.abs(axis).max() >= size)
    across = np.log2(axis) if log else axis / size
    centered = across - across.mean()
    slopes = paired_test(scores @ centered / (centered**2).sum())
    rho = float(np.mean([_spearman(row) for row in scores]))
    means = np.diff(scores.mean(axis=0))
    steps = (int((np.sign(means) == np.sign(slopes.difference.mean)).sum()), len(means))
    p, test = slopes.p, "t test of slopes"
    if seeds >= 2 and count >= MIN_AXIS_VALUES and 2 / math.factorial(count) ** seeds <= ALPHA:
        p, test = page(scores), "Page's L"
    return Trend(
        slopes.difference, slopes.deviation, "doubling" if log else unit, rho, p, test, steps, tuple(axis.tolist())
    )


def page(scores: np.ndarray) -> float:
    """Return the two-sided p of Page's L, exact up to eight values of the axis.

    Args:
        scores: (seeds, values), in the order of the axis.
    """
    tails = (stats.page_trend_test(part.tolist()).pvalue for part in (scores, -scores))
    return min(1.0, 2 * float(min(tails)))


def complete_blocks(values: pd.DataFrame) -> pd.DataFrame:
    """Return the complete part of `values`, with ascending columns.

    Seeds with a missing value are dropped. If fewer than two seeds would remain, axis values that most seeds lack are
    dropped first, down to MIN_AXIS_VALUES, so that one diverged arm doesn't remove all seeds.

    Args:
        values: one row per seed, one column per axis value, NaN if missing.
    """
    table = values.sort_index(axis=1).dropna(axis=1, how="all")
    while len(table.dropna()) < min(2, len(table)) and len(table.columns) > MIN_AXIS_VALUES:
        table = table.drop(columns=table.notna().sum().idxmin())
    return table.dropna()


def trend_of(values: pd.DataFrame) -> Trend | None:
    """Return the trend of scores over the complete seeds.

    Args:
        values: one row per seed, one column per axis value, NaN if missing; see `complete_blocks`.

    Returns:
        The trend; None if fewer than two axis values or no seed remain.
    """
    table = complete_blocks(values)
    if len(table) == 0 or len(table.columns) < 2:
        return None
    return trend(np.asarray(table.columns, dtype=float), table.to_numpy(dtype=float))


def _spearman(row: np.ndarray) -> float:
    """Return the rank correlation of a row with its positions, 0 if all are equal."""
    return float(np.corrcoef(np.arange(len(row)), stats.rankdata(row))[0, 1]) if np.ptp(row) > 0 else 0.0
