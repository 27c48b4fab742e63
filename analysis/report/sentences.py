"""What a study's numbers say, in sentences: arms against the baseline, trends, verdicts on claims, sources of noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import labels
from analysis.claims.verdicts import line, verdicts
from analysis.figures.search import pareto_front
from analysis.io.results import Results
from analysis.io.study import TRIAL
from analysis.stats.intervals import Estimate, number, signed
from analysis.stats.paired import against_baseline, comparisons, p_value, sentence
from analysis.stats.power import ALPHA
from analysis.stats.trend import LEAST, Trend, trend_of
from analysis.stats.variance_components import components_of


def comparison_sentences(results: Results) -> list[str]:
    """Does an arm differ from the baseline, and from its neighbour at the same x, beyond the noise of the seeds? Then
    trends over the axis."""
    study, frame = results.study, results.frame
    if unbeaten := pareto_front(results):
        wanted = ", ".join(f"{name} {way}d" for name, way in study.objectives.items())
        return [f"No trial beats these in all objectives ({wanted}): {', '.join(unbeaten)}.", *trends(results)]
    if not study.baseline:
        return trends(results)
    if study.baseline not in results.arms:
        return [f"The baseline {study.baseline} has no finished run, so nothing is compared with it.", *trends(results)]
    neighbours = comparisons(frame, _same_x(results), [study.primary], medians=False)
    found = [against_baseline(frame, study.baseline, [study.primary], medians=False), neighbours]
    name, lower = labels.metric_label(study.primary, results.tag("feature_net")), _lower(results)
    lines = []
    for family in found:
        rows = family.to_dict("records")
        if len(rows) > 1 and all(row["n"] == 1 for row in rows):  # all of them say the same
            lines += _single(rows, name) if family is found[0] else []
            continue
        lines += [sentence(row["arm"], row["against"], difference(row), row["p_holm"], name, lower) for row in rows]
    return [*lines, *trends(results)]


def _single(rows: Sequence[Mapping[Any, Any]], name: str) -> list[str]:
    """Differences of one seed, in one sentence."""
    each = ", ".join(f"{row['arm']} {number(row['difference'], sign=True)}" for row in rows)
    return [f"{name} against {rows[0]['against']} at n=1, which no interval can tell from noise: {each}."]


def difference(row: Mapping[Any, Any]) -> Estimate:
    """A row of `comparisons` as an estimate."""
    return Estimate(row["difference"], row["high"] - row["difference"], row["n"])


def trends(results: Results) -> list[str]:
    """The primary metric's trend along a numeric axis of three values or more, a line per hue."""
    study, frame = results.study, results.frame
    if study.x == TRIAL:
        return []
    numeric = frame["x"].map(lambda value: isinstance(value, float) and math.isfinite(value))
    lines = []
    for hue, part in frame[numeric].groupby("hue", sort=False):
        places = part.drop_duplicates("arm")["x"]
        if len(set(places)) < max(LEAST, len(places)):
            continue  # no order, or several arms at a place: not one line
        found = trend_of(part.pivot_table(index="seed", columns="x", values=f"final/{study.primary}"))
        if found and len(found.values) >= LEAST:
            lines.append(_trend_line(results, f"{hue!s}: " if hue else "", found))
    return lines


def claims(results: Results) -> list[str]:
    """A line per claim on the study."""
    return [line(results, verdict) for verdict in verdicts(results)]


def noise(results: Results) -> list[str]:
    """How much of the spread is the evaluation's, where runs were scored under several noises."""
    metric = results.study.primary
    found = components_of(results.frame, metric)
    if found is None:
        return []
    name = labels.metric_label(metric, results.tag("feature_net"))
    return [
        f"Noise of {name}: training seed {number(found.training, digits=3)}, evaluation noise "
        f"{number(found.evaluation, digits=3)} (standard deviations; one-way random effects over {found.runs} runs, "
        f"{found.scores} scores). A run's score is the mean over its noises, and intervals are over seeds."
    ]


def _trend_line(results: Results, head: str, found: Trend) -> str:
    study = results.study
    name = labels.metric_label(study.primary, results.tag("feature_net"))
    axis = labels.setting_label(study.x)
    slope = f"{signed(found.slope)} per {found.unit}"
    if found.n < 2:
        return f"{head}{name} over {axis}: slope {slope}, which no test can tell from noise."
    way = "rises" if found.sign > 0 else "falls"
    told = f"{way} with {axis}" if found.p < ALPHA else f"has no trend over {axis} beyond noise"
    right, every = found.steps
    order = f"rho {found.rho:.2f}, {right} of {every} steps that way"
    return f"{head}{name} {told}: slope {slope}, {p_value(found.p)} ({found.test}), {order}, n={found.n}."


def _same_x(results: Results) -> list[tuple[str, str]]:
    """Pairs of arms at the same place of the figure's axis: what the study's lines are drawn to compare."""
    study = results.study
    if study.x in ("", "arm"):
        return []
    arms: Sequence[str] = [arm for arm in results.arms if arm != study.baseline]
    first: pd.Series = results.frame.drop_duplicates("arm").set_index("arm")["x"]
    return [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :] if first[a] == first[b]]


def _lower(results: Results) -> bool:
    study = results.study
    return labels.lower_is_better(study.primary, study.primary, study.direction)
