"""Does a score rise or fall along an ordered axis? Every seed is a block that has all values of the axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.stats.intervals import Estimate
from analysis.stats.paired import paired_test
from analysis.stats.power import ALPHA

WIDE = 4.0  # an axis of positive values over this factor or more has its slope per doubling, else per unit
UNITS = {1e9: "billion", 1e6: "million", 1e3: "thousand", 0.0: "unit"}  # by the axis' highest value at least
LEAST = 3  # values that an order takes; two are a paired comparison


@dataclass(frozen=True)
class Trend:
    """A score along an axis over `n` seeds.

    slope: mean over seeds of each seed's least-squares slope, with Student's interval over the seeds; `deviation` is
    their spread. rho: mean Spearman correlation within a seed. p: two-sided; `test` names what it is of. steps:
    neighbours whose means go the slope's way, of how many. n < 2 has no p.
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
        return self.slope.n

    @property
    def sign(self) -> int:
        return int(np.sign(self.slope.mean)) if math.isfinite(self.slope.mean) else 0


def trend(axis: np.ndarray, scores: np.ndarray) -> Trend:
    """The trend of `scores` (seeds, values) over `axis` (values), ascending.

    Page's L (Page 1963) ranks within a seed, which takes away what a seed shifts all arms by, and is exact where a
    seed's values are exchangeable if nothing changes along the axis: valid at two seeds, where a t test of two slopes
    has one degree of freedom and an interval of 12.7 standard errors. (A spread that trebles along the axis leaves its
    rate of error below 5% too.) Where its smallest p can't reach 0.05 (two values, or three at two seeds) the t test of
    the slopes stands in; the design alone decides that. The interval of the slope is Student's either way.
    """
    seeds, count = scores.shape
    log = bool(axis[0] > 0 and axis[-1] / axis[0] >= WIDE)
    size, unit = next((size or 1.0, word) for size, word in UNITS.items() if np.abs(axis).max() >= size)
    across = np.log2(axis) if log else axis / size
    centred = across - across.mean()
    slopes = paired_test(scores @ centred / (centred**2).sum())
    rho = float(np.mean([_spearman(row) for row in scores]))
    means = np.diff(scores.mean(axis=0))
    steps = (int((np.sign(means) == np.sign(slopes.difference.mean)).sum()), len(means))
    p, test = slopes.p, "t test of slopes"
    if seeds >= 2 and count >= LEAST and 2 / math.factorial(count) ** seeds <= ALPHA:
        p, test = page(scores), "Page's L"
    return Trend(
        slopes.difference, slopes.deviation, "doubling" if log else unit, rho, p, test, steps, tuple(axis.tolist())
    )


def page(scores: np.ndarray) -> float:
    """Two-sided p of Page's L: twice the smaller one-sided p, exact up to eight values."""
    tails = (stats.page_trend_test(part.tolist()).pvalue for part in (scores, -scores))
    return min(1.0, 2 * float(min(tails)))


def complete_blocks(values: pd.DataFrame) -> pd.DataFrame:
    """The part of `values` (a row per seed, a column per axis value) that has no hole, columns ascending.

    Seeds that lack a value are left out. Where that leaves fewer than two seeds, the axis values that most seeds lack
    go first, as long as LEAST of them are left: an arm that diverged must not take the others with it.
    """
    table = values.sort_index(axis=1).dropna(axis=1, how="all")
    while len(table.dropna()) < min(2, len(table)) and len(table.columns) > LEAST:
        table = table.drop(columns=table.notna().sum().idxmin())
    return table.dropna()


def trend_of(values: pd.DataFrame) -> Trend | None:
    """The trend over `blocks(values)`, None where fewer than two axis values or no seed is left."""
    table = complete_blocks(values)
    if len(table) == 0 or len(table.columns) < 2:
        return None
    return trend(np.asarray(table.columns, dtype=float), table.to_numpy(dtype=float))


def _spearman(row: np.ndarray) -> float:
    """Rank correlation of `row` with its places, 0 for a row of equal values."""
    return float(np.corrcoef(np.arange(len(row)), stats.rankdata(row))[0, 1]) if np.ptp(row) > 0 else 0.0
