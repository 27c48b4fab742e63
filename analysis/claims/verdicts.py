"""Does a store bear a claim out? Reproduced, contradicted, inconclusive or not tested here, with the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import labels
from analysis.claims.selection import Claim, claims_of, pairs, select, value_of, words
from analysis.io.results import Results
from analysis.stats.intervals import Estimate, number, signed
from analysis.stats.paired import differences, holm, p_value, paired_test
from analysis.stats.power import ALPHA, format_seeds_needed, seeds_needed
from analysis.stats.trend import Trend, trend_of

GAP_PREFIX = "gap"  # what the name of a gap's check begins with
REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = "reproduced", "contradicted", "inconclusive", "not tested here"


@dataclass(frozen=True)
class Check:
    """One comparison or trend of a claim.

    value: in the metric's own units and direction; of a gap, what `arm` is ahead. gain: `value` turned so that
    positive bears the claim out and, for not_worse, moved by the margin. p: two-sided, of gain being 0. needed: seeds
    in all that would tell; None over power.MOST or where one seed can't say.
    """

    what: str
    metric: str
    value: Estimate
    unit: str
    gain: float
    p: float
    needed: int | None
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.gain > 0 and self.p < ALPHA


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to: reproduced if every check holds, contradicted if any is significantly the other way.

    Requiring all checks to hold needs no correction for their number (an intersection-union test, Berger 1982); finding
    one that goes the other way does, and has Holm's.
    """

    claim: Claim
    word: str
    checks: tuple[Check, ...]
    why: str = ""  # of what isn't tested, or what it would take


def verdicts(results: Results) -> list[Verdict]:
    """A verdict on each claim on the study."""
    return [judge(results, claim) for claim in claims_of(results.study.name)]


def judge(results: Results, claim: Claim) -> Verdict:
    """Checks one claim on the arms that a store has."""
    metrics = [m for m in claim.metrics if f"final/{m}" in results.frame and results.frame[f"final/{m}"].notna().any()]
    if not metrics:
        return Verdict(claim, NOT_TESTED, (), why=f"no run has {', '.join(claim.metrics)}")
    found, why = {"trend": _trends, "gap_grows": _gaps}.get(claim.kind, _pairs)(results, claim, metrics)
    checks = tuple(check for check in found if check.value.n)
    if not checks:
        return Verdict(claim, NOT_TESTED, (), why=why or "no seed in common")
    if all(check.holds for check in checks):
        return Verdict(claim, REPRODUCED, checks)
    opposite = holm([check.p for check in checks])
    if any(check.gain < 0 and p < ALPHA for check, p in zip(checks, opposite, strict=True)):
        return Verdict(claim, CONTRADICTED, checks)
    return Verdict(claim, INCONCLUSIVE, checks, why=_short_of(checks))


def line(results: Results, verdict: Verdict) -> str:
    """A verdict with the numbers that say so, in a line of text."""
    head = f"{verdict.claim.text} ({origin(verdict.claim)}): **{verdict.word}**"
    if verdict.word == NOT_TESTED:
        return f"{head}: {verdict.why}."
    if verdict.word == INCONCLUSIVE:
        head += f" ({verdict.why})"
    return f"{head}: {numbers(results, verdict)}"


def origin(claim: Claim) -> str:
    """Who makes a claim, where that isn't the paper, and how far that can be trusted."""
    return ", ".join(part for part in (claim.source, f"trust: {claim.trust}") if part)


def numbers(results: Results, verdict: Verdict) -> str:
    """How many checks hold, the one that decides, and what could not be checked; of a verdict that has checks."""
    claim, checks = verdict.claim, verdict.checks
    missing = [metric for metric in claim.metrics if metric not in {check.metric for check in checks}]
    untested = f" Not tested: {', '.join(missing)}." if missing else ""
    holding = sum(check.holds for check in checks)
    count = f"holds in {holding} of {len(checks)} checks; " if len(checks) > 1 else ""
    return f"{count}{_numbers(results, _deciding_check(verdict))}.{untested}"


def table(found: Sequence[Verdict]) -> pd.DataFrame:
    """A row per check, or per claim without one."""
    rows: list[dict[str, object]] = []
    for verdict in found:
        of = verdict.claim
        claim: dict[str, object] = {"claim": of.text, "trust": of.trust, "source": of.source, "section": of.section}
        claim |= {"kind": of.kind, "verdict": verdict.word}
        for check in verdict.checks:
            row = dict(claim) | {"check": check.what, "metric": check.metric, "n": check.value.n}
            row |= {"value": check.value.mean, "low": check.value.low, "high": check.value.high}
            row |= {"unit": check.unit.strip(), "p": check.p, "holds": check.holds, "detail": check.detail}
            row["seeds_needed"] = None if check.holds else check.needed
            rows.append(row)
        if not verdict.checks:
            rows.append(dict(claim) | {"detail": verdict.why})
    return pd.DataFrame(rows)


def _short_of(checks: Sequence[Check]) -> str:
    """How many seeds the open checks would take, as a plan from their present spread."""
    needed = [check.needed for check in checks if not check.holds and check.value.n > 1]
    if not needed:
        return "n=1 can't tell"
    return format_seeds_needed(None if None in needed else max(n for n in needed if n is not None))


def _deciding_check(verdict: Verdict) -> Check:
    """The check that decides: the clearest one against a claim that fails, the weakest of one that doesn't."""
    if verdict.word == CONTRADICTED:
        return min((check for check in verdict.checks if check.gain < 0), key=lambda check: check.p)
    return max(verdict.checks, key=lambda c: (not c.holds, c.gain <= 0, math.inf if math.isnan(c.p) else c.p))


def _numbers(results: Results, check: Check) -> str:
    study = results.study
    title = labels.metric_label(check.metric, results.tag("feature_net"))
    arrow = (
        ""
        if check.what.startswith(GAP_PREFIX)
        else f" {labels.direction_arrow(check.metric, study.primary, study.direction)}".rstrip()
    )
    detail = f", {check.detail}" if check.detail else ""
    value = signed(check.value).removesuffix(" (n=1)")
    return f"{check.what}: {value} {title}{arrow}{check.unit}, {p_value(check.p)}, n={check.value.n}{detail}"


def _lower(results: Results, metric: str) -> bool:
    return labels.lower_is_better(metric, results.study.primary, results.study.direction)


def _pairs(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    found = pairs(results, claim)
    if not found:
        return [], _why_no_pair(results, claim)
    checks = []
    for arm, against in found:
        for metric in metrics:
            sign = -1.0 if _lower(results, metric) else 1.0
            values = differences(results.frame, f"final/{metric}", arm, against)
            checks.append(_pair_check(results, claim, f"{arm} against {against}", metric, values, sign, against))
    return checks, ""


def _pair_check(
    results: Results, claim: Claim, what: str, metric: str, values: np.ndarray, sign: float, against: str
) -> Check:
    """Student's paired t test of the gain; of not_worse, of the gain and the margin together (a share of a mean that is
    taken as known)."""
    share, detail = claim.margin.get(metric, 0.0), ""
    margin = share * abs(float(results.frame.loc[results.frame["arm"] == against, f"final/{metric}"].mean()))
    if claim.kind == "not_worse":
        detail = f"margin {number(margin, digits=2)}"
    tested = paired_test(sign * values + margin)
    needed = _more(seeds_needed(tested.difference.mean, tested.deviation), tested.n)
    shown = paired_test(values).difference
    return Check(what, metric, shown, "", tested.difference.mean, tested.p, needed, detail)


def _trends(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    checks = []
    for group, arms in _alike(results, claim).items():
        places = {arm: place for arm in arms if _number(place := value_of(results, arm, claim.axis))}
        part = results.frame[results.frame["arm"].isin(places)]
        part = part.assign(place=part["arm"].map(places))
        for metric in metrics:
            table = part.pivot_table(index="seed", columns="place", values=f"final/{metric}", aggfunc="mean")
            found = trend_of(table)
            if found:
                towards = 1.0 if claim.better == "larger" else -1.0
                sign = -towards if _lower(results, metric) else towards
                what = f"trend over {labels.setting_label(claim.axis)}{group}"
                checks.append(_trend_check(what, metric, found, sign))
    narrowed = f" where {words(claim.where)}" if claim.where else ""
    return checks, f"fewer than two values of {claim.axis} at a seed{narrowed}"


def _alike(results: Results, claim: Claim) -> dict[str, list[str]]:
    """Arms of a trend by what they must agree in; its words where there are several such groups."""
    groups: dict[str, list[str]] = {}
    for arm in select(results, claim.where):
        agree = ", ".join(f"{labels.setting_label(key)} {value_of(results, arm, key)}" for key in claim.same)
        groups.setdefault(f" at {agree}" if agree else "", []).append(arm)
    return groups if len(groups) > 1 else {"": next(iter(groups.values()), [])}


def _gaps(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    """What `arm` is ahead of `against` at each place of the axis that both have, and its trend."""
    at = {}
    for arm in select(results, claim.arm):
        for against in select(results, claim.against):
            place, other = value_of(results, arm, claim.axis), value_of(results, against, claim.axis)
            if _number(place) and place == other:
                at[place] = (arm, against)
    if len(at) < 2:
        return [], f"fewer than two values of {claim.axis} that both have"
    checks = []
    for metric in metrics:
        sign = -1.0 if _lower(results, metric) else 1.0
        table = results.frame.pivot_table(index="seed", columns="arm", values=f"final/{metric}", aggfunc="mean")
        gaps = {
            place: sign * (table[arm] - table[against])
            for place, (arm, against) in at.items()
            if arm in table and against in table
        }
        found = trend_of(pd.DataFrame(gaps))
        if found:
            checks.append(_trend_check(f"{GAP_PREFIX} over {labels.setting_label(claim.axis)}", metric, found, 1.0))
    return checks, "no seed has two values of the axis"


def _trend_check(what: str, metric: str, found: Trend, sign: float) -> Check:
    needed = _more(seeds_needed(found.slope.mean, found.deviation), found.n)
    right, every = found.steps
    detail = f"{found.test}, rho {found.rho:.2f}, {right} of {every} steps that way"
    unit = f" per {found.unit}"
    return Check(what, metric, found.slope, unit, sign * found.slope.mean, found.p, needed, detail)


def _more(needed: int | None, have: int) -> int | None:
    """An inconclusive check needs more seeds than it has: a rough plan, from the spread of few, may say otherwise."""
    return None if needed is None else max(needed, have + 1)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _why_no_pair(results: Results, claim: Claim) -> str:
    if claim.pairs:
        return "fewer than two arms"
    for selector in (claim.arm, claim.against):
        if not select(results, selector):
            return f"no arm with {words(selector)}"
    return f"no two arms with the same {' and '.join(claim.same)}"
