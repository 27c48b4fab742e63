"""Describe results in sentences: comparisons, trends, verdicts and variance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import labels
from analysis.claims.verdicts import line, verdicts
from analysis.io.results import Results
from analysis.io.search import pareto_front
from analysis.io.study import TRIAL_NUMBER
from analysis.stats.paired import UNTESTED, against_baseline, comparisons, p_value, sentence
from analysis.stats.power import ALPHA
from analysis.stats.trend import MIN_AXIS_VALUES, Trend, trend_of
from analysis.stats.variance_components import components_of
from microdit.common.contract import final_metric
from microdit.common.numbers import Estimate, format_number, signed


def comparison_sentences(results: Results) -> list[str]:
    """Return comparisons of arms, then trends over the axis.

    Each arm is compared with the baseline and with arms at the same x. For a search with several objectives: its Pareto
    front, then trends.
    """
    study, frame = results.study, results.frame
    if unbeaten := pareto_front(results):
        wanted = ", ".join(f"{name} {way}d" for name, way in study.objectives.items())
        return [f"No trial beats these in all objectives ({wanted}): {', '.join(unbeaten)}.", *trends(results)]
    if not study.baseline:
        return trends(results)
    if study.baseline not in results.arms:
        return [f"The baseline {study.baseline} has no finished run, so nothing is compared with it.", *trends(results)]
    neighbors = comparisons(frame, _same_x(results), [study.primary], medians=False)
    found = [against_baseline(frame, study.baseline, [study.primary], medians=False), neighbors]
    name, lower = results.label(study.primary), results.lower_is_better(study.primary)
    lines = []
    for family in found:
        rows = family.to_dict("records")
        if len(rows) > 1 and all(row["n"] == 1 for row in rows):  # one sentence for all
            lines += _single(rows, name) if family is found[0] else []
            continue
        lines += [sentence(row["arm"], row["against"], difference(row), row["p_holm"], name, lower) for row in rows]
    return [*lines, *trends(results)]


def _single(rows: Sequence[Mapping[Any, Any]], name: str) -> list[str]:
    """Return differences at one seed, in one sentence."""
    each = ", ".join(f"{row['arm']} {format_number(row['difference'], sign=True)}" for row in rows)
    return [f"{name} against {rows[0]['against']} at n=1; {UNTESTED}: {each}."]


def difference(row: Mapping[Any, Any]) -> Estimate:
    """Return a comparison as an estimate.

    Args:
        row: of `comparisons`, with difference, high and n.
    """
    return Estimate(row["difference"], row["high"] - row["difference"], row["n"])


def trends(results: Results) -> list[str]:
    """Return the primary metric's trend over a numeric axis, one line per hue.

    The axis must have at least three values.
    """
    study, frame = results.study, results.frame
    if study.x == TRIAL_NUMBER:
        return []
    numeric = frame["x"].map(lambda value: isinstance(value, float) and math.isfinite(value))
    lines = []
    for hue, part in frame[numeric].groupby("hue", sort=False):
        places = part.drop_duplicates("arm")["x"]
        if len(set(places)) < max(MIN_AXIS_VALUES, len(places)):
            continue  # too few values, or several arms at one value
        found = trend_of(part.pivot_table(index="seed", columns="x", values=final_metric(study.primary)))
        if found and len(found.values) >= MIN_AXIS_VALUES:
            lines.append(_trend_line(results, f"{hue!s}: " if hue else "", found))
    return lines


def claims(results: Results) -> list[str]:
    """Return one line per claim about the study."""
    return [line(results, verdict) for verdict in verdicts(results)]


def evaluation_noise(results: Results) -> list[str]:
    """Return the share of evaluation noise in the variance, as a sentence.

    Empty unless runs were scored on several noise sets.
    """
    metric = results.study.primary
    found = components_of(results.frame, metric)
    if found is None:
        return []
    name = results.label(metric)
    training, evaluation = (format_number(value, digits=3) for value in (found.training, found.evaluation))
    return [
        f"Variance of {name}: standard deviation {training} between training seeds, {evaluation} from evaluation noise "
        f"(one-way random effects over {found.runs} runs, {found.scores} scores). A run's score is the mean over its "
        "noise sets, and intervals are over seeds."
    ]


def _trend_line(results: Results, head: str, found: Trend) -> str:
    study = results.study
    name = results.label(study.primary)
    axis = labels.setting_label(study.x)
    slope = f"{signed(found.slope)} per {found.unit}"
    if found.n < 2:
        return f"{head}{name} over {axis}: slope {slope}; {UNTESTED}."
    way = "rises" if found.sign > 0 else "falls"
    text = f"{way} with {axis}" if found.p < ALPHA else f"has no significant trend over {axis}"
    right, every = found.steps
    order = f"rho {found.rho:.2f}, {right} of {every} steps in that direction"
    return f"{head}{name} {text}: slope {slope}, {p_value(found.p)} ({found.test}), {order}, n={found.n}."


def _same_x(results: Results) -> list[tuple[str, str]]:
    """Return pairs of arms with the same x, which the figure's lines compare."""
    study = results.study
    if study.x in ("", "arm"):
        return []
    arms: Sequence[str] = [arm for arm in results.arms if arm != study.baseline]
    first: pd.Series = results.frame.drop_duplicates("arm").set_index("arm")["x"]
    return [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :] if first[a] == first[b]]
