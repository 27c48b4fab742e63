"""Noise of the evaluation apart from noise of the training, where runs were scored with several evaluation noises.

A run's `final/<metric>` is of evaluation noise 0; scores of the same weights under further noises, which
`evaluation.noises` asks for, are `final/noise<k>/<metric>`, k = 1, 2, ... (MLflow takes no '@' in a name, and draws
what stands before the last slash as a section of its own.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

NOISE = re.compile(r"final/noise(\d+)/(.+)")


@dataclass(frozen=True)
class Components:
    """Standard deviations: `training` between seeds of an arm, `evaluation` between noises of a run."""

    training: float
    evaluation: float
    runs: int
    scores: int


def noises(frame: pd.DataFrame, metric: str) -> list[str]:
    """Columns of `metric` under evaluation noises 0, 1, ...; empty where there is only one."""
    found = [(int(m[1]), column) for column in frame.columns if (m := NOISE.fullmatch(column)) and m[2] == metric]
    return [column for _, column in sorted(found)] if len(found) > 1 else []


def average_noises(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with each `final/<metric>` the run's mean over noises, and what it was as `final/noise0/<metric>`.

    Only noises that every run has are averaged: the rest would not be the same for both arms of a pair.
    """
    metrics = dict.fromkeys(m[2] for column in frame.columns if (m := NOISE.fullmatch(column)))
    out = frame.copy()
    for metric in metrics:
        if f"final/{metric}" not in out:
            continue
        out[f"final/noise0/{metric}"] = out[f"final/{metric}"]
        shared = [column for column in noises(out, metric) if out[column].notna().all()]
        if len(shared) > 1:
            out[f"final/{metric}"] = out[shared].mean(axis=1)
    return out


def components(groups: Sequence[Sequence[Sequence[float]]]) -> Components | None:
    """One-way random effects, pooled over arms: `groups` holds arms of runs of scores under each noise.

    Analysis of variance (Searle, Casella & McCulloch 1992, ch. 3): within runs E[MS] = e, between runs of an arm
    E[MS] = e + n0 t; an estimate of t below 0 is 0. None without two runs in an arm and two scores in a run. As runs
    share their noises, what a noise does to all runs alike counts as evaluation's and can make t come out low.
    """
    between = within = spread_df = noise_df = weight = 0.0
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
        spread_df += len(runs) - 1
        noise_df += float(sizes.sum()) - len(runs)
        weight += float(sizes.sum() - (sizes**2).sum() / sizes.sum())
        count, scores = count + len(runs), scores + int(sizes.sum())
    if not spread_df or not noise_df:
        return None
    evaluation = within / noise_df
    training = max(0.0, (between / spread_df - evaluation) / (weight / spread_df))
    return Components(math.sqrt(training), math.sqrt(evaluation), count, scores)


def components_of(frame: pd.DataFrame, metric: str) -> Components | None:
    """`components` of a metric over the arms of `frame`; None where runs have one noise."""
    columns = noises(frame, metric)
    if not columns:
        return None
    return components([part[columns].to_numpy().tolist() for _, part in frame.groupby("arm", sort=False)])
