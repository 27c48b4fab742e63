"""Compare arms paired by seed.

Intervals, p-values, effect sizes, Holm's correction, and a bootstrap of the median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import special, stats

from analysis.stats.power import ALPHA
from microdit.common.contract import final_metric
from microdit.common.numbers import LEVEL, Estimate, estimate, format_number, signed

RESAMPLES = 4000
BOOTSTRAP_SEED = 0
ROUNDING = 1e-12  # relative; a smaller standard deviation is rounding error
MIN_P_PRINTED = 1e-4
UNTESTED = "without an interval it can't be distinguished from seed noise"
COLUMNS = ["metric", "arm", "against", "n", "difference", "low", "high", "deviation", "d_z", "g_z", "p", "p_holm"]
COLUMNS += ["median", "median_low", "median_high"]


@dataclass(frozen=True)
class Paired:
    """A paired comparison over the seeds that two arms share.

    Attributes:
        difference: mean difference with its interval, which is NaN if n < 2.
        deviation: standard deviation of the differences.
        p: two-sided, of Student's t test; NaN if n < 2.
        d_z: mean divided by standard deviation of the differences.
        g_z: d_z with Hedges' correction for few seeds (Hedges 1981); NaN at n = 2.
    """

    difference: Estimate
    deviation: float
    p: float
    d_z: float
    g_z: float

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return self.difference.n


def differences(frame: pd.DataFrame, column: str, arm: str, against: str) -> np.ndarray:
    """Return `arm` minus `against` at each seed that both have.

    Args:
        frame: one row per run, with columns arm, seed and `column`.
        column: the score, such as `final/fd`.
        arm: the first arm.
        against: the second arm.

    Returns:
        (seeds,), in the order of seeds. Seeds without finite values for both are left out.
    """
    return _differences(by_seed(frame[frame["arm"].isin((arm, against))], column), arm, against)


def by_seed(frame: pd.DataFrame, column: str) -> dict[str, dict[int, float]]:
    """Return the scores of each arm by seed.

    Args:
        frame: one row per run, with columns arm, seed and `column`.
        column: the score.
    """
    found: dict[str, dict[int, float]] = {}
    for arm, seed, score in zip(*(frame[name].tolist() for name in ("arm", "seed", column)), strict=True):
        found.setdefault(arm, {})[seed] = score
    return found


def _differences(scores: Mapping[str, Mapping[int, float]], arm: str, against: str) -> np.ndarray:
    first, second = scores.get(arm, {}), scores.get(against, {})
    values = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())], dtype=float)
    return values[np.isfinite(values)]


def paired_test(values: Sequence[float] | np.ndarray) -> Paired:
    """Return Student's paired t test.

    If all differences are equal, p is 0, or 1 if all are 0.

    Args:
        values: (seeds,), differences.
    """
    found, n = estimate(list(values)), len(values)
    if n < 2:
        return Paired(found, math.nan, math.nan, math.nan, math.nan)
    deviation = float(np.std(values, ddof=1))
    if deviation <= ROUNDING * max(abs(float(v)) for v in values):
        same = found.mean == 0
        effect = 0.0 if same else math.copysign(math.inf, found.mean)
        return Paired(Estimate(found.mean, 0.0, n), 0.0, 1.0 if same else 0.0, effect, effect if n > 2 else math.nan)
    t = found.mean / (deviation / math.sqrt(n))
    effect = found.mean / deviation
    return Paired(found, deviation, float(2 * stats.t.sf(abs(t), n - 1)), effect, effect * hedges(n - 1))


def hedges(df: int) -> float:
    """Return Hedges' correction factor of a standardized mean difference.

    Args:
        df: degrees of freedom.

    Returns:
        Below 1; NaN if `df` is below 2.
    """
    if df < 2:
        return math.nan
    return math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values (Holm 1979).

    Args:
        p: of a family of tests. NaN is not counted as a test and stays NaN.

    Returns:
        One per test, in the order of `p`.
    """
    values = np.asarray(p, dtype=float)
    tested = np.flatnonzero(np.isfinite(values))
    adjusted = np.full(len(values), math.nan)
    least = 0.0
    for place, index in enumerate(tested[np.argsort(values[tested], kind="stable")]):
        least = max(least, min(1.0, (len(tested) - place) * values[index]))
        adjusted[index] = least
    return adjusted.tolist()


def median_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Return the median and the bounds of a seeded percentile bootstrap.

    The bounds can't exceed the range of the seeds, so with few seeds they cover less than 95%: n values enclose the
    median with probability 1 - 2^(1-n). Use them as a description, not as a test.

    Args:
        values: (seeds,); those that are not finite are left out.

    Returns:
        Median, lower and upper 95% bound; the bounds are NaN below two values.
    """
    data = np.asarray(values, dtype=float)
    data = data[np.isfinite(data)]
    if len(data) == 0:
        return math.nan, math.nan, math.nan
    if len(data) == 1:
        return float(data[0]), math.nan, math.nan
    medians = np.median(data[_resamples(len(data))], axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.median(data)), float(low), float(high)


@lru_cache(maxsize=1)  # most arms of a study have the same number of seeds
def _resamples(n: int) -> np.ndarray:
    """Return the indices (RESAMPLES, n) that each resample draws."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(n, size=(RESAMPLES, n))


def comparisons(
    frame: pd.DataFrame, pairs: Sequence[tuple[str, str]], metrics: Sequence[str], medians: bool = True
) -> pd.DataFrame:
    """Return one row per metric and pair of arms, with the columns COLUMNS.

    Args:
        frame: one row per run, with columns arm, seed and `final/*`.
        pairs: (arm, against); the difference is arm minus against.
        metrics: names without `final/`.
        medians: False leaves the columns of the median NaN, because the bootstrap takes most of the time.

    Returns:
        metric, arm, against, n (seeds); mean difference, its 95% bounds low and high, and the deviation over seeds, in
        the metric's units; d_z, g_z; p, and p_holm corrected over the pairs of a metric; median with its bounds.
    """
    rows: list[dict[str, object]] = []
    for metric in metrics:
        scores = by_seed(frame, final_metric(metric))
        found = [_differences(scores, arm, against) for arm, against in pairs]
        tests = [paired_test(values) for values in found]
        corrected = holm([test.p for test in tests])
        for (arm, against), values, test, p_holm in zip(pairs, found, tests, corrected, strict=True):
            mean = test.difference
            row: dict[str, object] = {"metric": metric, "arm": arm, "against": against, "n": mean.n}
            row |= {"difference": mean.mean, "low": mean.low, "high": mean.high, "deviation": test.deviation}
            row |= {"d_z": test.d_z, "g_z": test.g_z, "p": test.p, "p_holm": p_holm}
            row |= dict(
                zip(("median", "median_low", "median_high"), median_interval(values if medians else []), strict=True)
            )
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def against_baseline(frame: pd.DataFrame, baseline: str, metrics: Sequence[str], medians: bool = True) -> pd.DataFrame:
    """Return `comparisons` of every other arm with the baseline.

    They are the study's family of tests per metric.

    Args:
        frame: one row per run, with columns arm, seed and `final/*`.
        baseline: its arm; without a run of it, there is no row.
        metrics: names without `final/`.
        medians: whether to compute the columns of the median.
    """
    present = list(frame["arm"].unique())
    arms, known = [arm for arm in present if arm != baseline], baseline in present
    return comparisons(frame, [(arm, baseline) for arm in arms] if known else [], metrics, medians)


def winner(frame: pd.DataFrame, metric: str, lower_is_better: bool) -> str | None:
    """Return the best arm if it beats every other one significantly, else None.

    It must have the best mean, and Holm-corrected p < 0.05 against each.

    Args:
        frame: one row per run, with columns arm, seed and the score.
        metric: the score, without `final/`.
        lower_is_better: whether lower values are better.
    """
    column = final_metric(metric)
    groups = frame.groupby("arm", sort=False)[column].mean().dropna()
    means = {str(arm): float(mean) for arm, mean in groups.items()}
    if len(means) < 2:
        return None
    best = min(means, key=lambda arm: means[arm] if lower_is_better else -means[arm])
    scores = by_seed(frame, column)
    tests = [paired_test(_differences(scores, best, arm)) for arm in means if arm != best]
    right = all((test.difference.mean < 0) == lower_is_better and test.n > 1 for test in tests)
    return best if right and max(holm([test.p for test in tests])) < ALPHA else None


def sentence(arm: str, against: str, difference: Estimate, p_holm: float, metric: str, lower_is_better: bool) -> str:
    """Return a difference in words: whether it exceeds seed noise, and its direction.

    Args:
        arm: the arm.
        against: the arm that it is compared with.
        difference: mean of arm minus against over seeds.
        p_holm: corrected p-value.
        metric: the score in print.
        lower_is_better: whether lower values are better.
    """
    value, n = signed(difference), difference.n
    if n == 0:
        return f"{arm}: not compared with {against}, because they share no seed."
    if n == 1:
        return f"{arm}: {value.removesuffix(' (n=1)')} {metric} against {against} at n=1; {UNTESTED}."
    if p_holm >= ALPHA:
        return f"{arm}: within seed noise of {against} at n={n}: {value} {metric}, {p_value(p_holm, 'Holm p')}."
    word = "better" if (difference.mean < 0) == lower_is_better else "worse"
    return f"{arm}: differs from {against}: {value} {metric} over n={n} seeds, {p_value(p_holm, 'Holm p')} ({word})."


def p_value(p: float, name: str = "p") -> str:
    """Return a p-value in print: `p = 0.012`, `p < 0.0001` or `no p`.

    Args:
        p: the p-value; NaN if there is none.
        name: printed instead of "p".
    """
    if not math.isfinite(p):
        return f"no {name}"
    return f"{name} {'' if p < MIN_P_PRINTED else '= '}{p_number(p)}"


def p_number(p: float) -> str:
    """Return a p-value without its name: `0.012`, `< 0.0001`, or `-` for NaN.

    Args:
        p: the p-value.
    """
    return "< 0.0001" if p < MIN_P_PRINTED else format_number(p, digits=2)
