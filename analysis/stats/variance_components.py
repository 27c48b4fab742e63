"""Separate evaluation noise from seed variance.

Runs must have been scored on several noise sets. `final/<metric>` of a run is its score on noise set 0. With
`evaluation.noises` above 1 the same weights are scored on further sets of samples, each drawn from other noise:
`final/noise<k>/<metric>`, k = 1, 2, ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from microdit.common.contract import FINAL_PREFIX, NOISE_SET_PREFIX, final_metric, noise_set_metric

NOISE_SET_METRIC = re.compile(rf"{FINAL_PREFIX}{NOISE_SET_PREFIX}(\d+)/(.+)")


@dataclass(frozen=True)
class Components:
    """Standard deviations of scores, in the metric's units.

    Attributes:
        training: between the seeds of an arm.
        evaluation: between the noise sets of a run.
        runs: number of runs that were used.
        scores: number of their scores.
    """

    training: float
    evaluation: float
    runs: int
    scores: int


def noise_set_columns(frame: pd.DataFrame, metric: str) -> list[str]:
    """Return the columns of a metric on noise sets 0, 1, ...

    Args:
        frame: one row per run.
        metric: the score, without `final/`.

    Returns:
        Names of columns; empty if there is only one set.
    """
    found = [
        (int(m[1]), column) for column in frame.columns if (m := NOISE_SET_METRIC.fullmatch(column)) and m[2] == metric
    ]
    return [column for _, column in sorted(found)] if len(found) > 1 else []


def average_noise_sets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with each `final/<metric>` averaged over noise sets.

    Only noise sets that every run has are averaged, so that paired arms share them.

    Args:
        frame: one row per run, with columns `final/*`; not changed.

    Returns:
        A copy; the value before is in column `final/noise0/<metric>`.
    """
    metrics = dict.fromkeys(m[2] for column in frame.columns if (m := NOISE_SET_METRIC.fullmatch(column)))
    out = frame.copy()
    for metric in metrics:
        column = final_metric(metric)
        if column not in out:
            continue
        out[noise_set_metric(0, metric)] = out[column]
        shared = [name for name in noise_set_columns(out, metric) if out[name].notna().all()]
        if len(shared) > 1:
            out[column] = out[shared].mean(axis=1)
    return out


def components(groups: Sequence[Sequence[Sequence[float]]]) -> Components | None:
    """Estimate both components by one-way random effects, pooled over arms.

    Analysis of variance (Searle, Casella & McCulloch 1992, ch. 3): within runs E[MS] = e, between runs of an arm
    E[MS] = e + n0 t. An estimate of t below 0 is set to 0. Runs share their noise sets, so an effect of a noise set
    that is common to all runs counts as evaluation noise and can lower t.

    Args:
        groups: scores by arm, run and noise set.

    Returns:
        The components; None without two runs in an arm and two scores in a run.
    """
    between = within = between_df = within_df = weight = 0.0
    count = scores = 0
    for arm in groups:
        runs = [np.asarray(run, dtype=float) for run in arm]
        runs = [run[np.isfinite(run)] for run in runs if np.isfinite(run).any()]
        if len(runs) < 2:
            continue
        sizes = np.array([len(run) for run in runs], dtype=float)
        means = np.array([run.mean() for run in runs])
        grand = (sizes * means).sum() / sizes.sum()
        between += float((sizes * (means - grand) ** 2).sum())
        within += float(sum(((run - mean) ** 2).sum() for run, mean in zip(runs, means, strict=True)))
        between_df += len(runs) - 1
        within_df += float(sizes.sum()) - len(runs)
        weight += float(sizes.sum() - (sizes**2).sum() / sizes.sum())
        count, scores = count + len(runs), scores + int(sizes.sum())
    if not between_df or not within_df:
        return None
    evaluation = within / within_df
    training = max(0.0, (between / between_df - evaluation) / (weight / between_df))
    return Components(math.sqrt(training), math.sqrt(evaluation), count, scores)


def components_of(frame: pd.DataFrame, metric: str) -> Components | None:
    """Return the components of a metric, pooled over arms.

    Args:
        frame: one row per run, with columns arm and `final/noise<k>/<metric>`.
        metric: the score, without `final/`.

    Returns:
        The components; None if runs have only one noise set.
    """
    columns = noise_set_columns(frame, metric)
    if not columns:
        return None
    return components([part[columns].to_numpy().tolist() for _, part in frame.groupby("arm", sort=False)])
