"""Verdicts on claims: reproduced, contradicted, inconclusive or not tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import labels
from analysis.claims.selection import claims_of, pairs, select, value_of, words
from analysis.io.columns import mean_or_none
from analysis.io.results import Results
from analysis.stats.paired import differences, holm, p_value, paired_test
from analysis.stats.power import ALPHA, format_seeds_needed, seeds_needed
from analysis.stats.trend import Trend, trend_of
from microdit.common.contract import final_metric
from microdit.common.numbers import Estimate, format_number, signed
from microdit.common.stores.claims import Claim

GAP_PREFIX = "gap"  # of the name of a check on a gap
REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = "reproduced", "contradicted", "inconclusive", "not tested here"


@dataclass(frozen=True)
class Check:
    """One comparison or trend of a claim.

    Attributes:
        what: the arms or the axis.
        value: in the metric's units and direction; for a gap, the lead of `arm` over `against`.
        gain: `value` with the sign that supports the claim positive; for not_worse shifted by the margin.
        p: two-sided, for the hypothesis that gain is 0.
        needed: total number of seeds for a significant result; None above power.MAX_SEEDS or if n = 1.
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
    """The verdict on a claim.

    A claim is reproduced if every check holds, and contradicted if one is significant in the other direction. Requiring
    all checks to hold needs no correction for their number (intersection-union test, Berger 1982). Finding one in the
    other direction does; Holm's correction is used.
    """

    claim: Claim
    word: str
    checks: tuple[Check, ...]
    why: str = ""  # why it isn't tested, or how many seeds it needs


def verdicts(results: Results) -> list[Verdict]:
    """Return a verdict on each claim about the study."""
    return [judge(results, claim) for claim in claims_of(results.study)]


def judge(results: Results, claim: Claim) -> Verdict:
    """Return the verdict on one claim, from the arms that have finished runs."""
    metrics = [m for m in claim.metrics if mean_or_none(results.frame, final_metric(m)) is not None]
    if not metrics:
        return Verdict(claim, NOT_TESTED, (), why=f"no run has {', '.join(claim.metrics)}")
    found, why = {"trend": _trends, "gap_grows": _gaps}.get(claim.kind, _pairs)(results, claim, metrics)
    checks = tuple(check for check in found if check.value.n)
    if not checks:
        return Verdict(claim, NOT_TESTED, (), why=why or "the arms share no seed")
    if all(check.holds for check in checks):
        return Verdict(claim, REPRODUCED, checks)
    opposite = holm([check.p for check in checks])
    if any(check.gain < 0 and p < ALPHA for check, p in zip(checks, opposite, strict=True)):
        return Verdict(claim, CONTRADICTED, checks)
    return Verdict(claim, INCONCLUSIVE, checks, why=_seeds_text(checks))


def line(results: Results, verdict: Verdict) -> str:
    """Return a verdict and its numbers in one line of Markdown."""
    head = f"{verdict.claim.text} ({origin(verdict.claim)}): **{verdict.word}**"
    if verdict.word == NOT_TESTED:
        return f"{head}: {verdict.why}."
    if verdict.word == INCONCLUSIVE:
        head += f" ({verdict.why})"
    return f"{head}: {numbers(results, verdict)}"


def origin(claim: Claim) -> str:
    """Return who makes a claim, if it isn't the paper, and the claim's trust level."""
    return ", ".join(part for part in (claim.source, f"trust: {claim.trust}" if claim.trust else "") if part)


def numbers(results: Results, verdict: Verdict) -> str:
    """Return how many checks hold, the decisive one, and the missing metrics.

    The verdict must have checks.
    """
    claim, checks = verdict.claim, verdict.checks
    missing = [metric for metric in claim.metrics if metric not in {check.metric for check in checks}]
    untested = f" Not tested: {', '.join(missing)}." if missing else ""
    holding = sum(check.holds for check in checks)
    count = f"holds in {holding} of {len(checks)} checks; " if len(checks) > 1 else ""
    return f"{count}{_numbers(results, _deciding_check(verdict))}.{untested}"


def table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row per check, or per claim without checks."""
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


def _seeds_text(checks: Sequence[Check]) -> str:
    """Return how many seeds the open checks need.

    Their observed effects and standard deviations are assumed.
    """
    needed = [check.needed for check in checks if not check.holds and check.value.n > 1]
    if not needed:
        return "n=1 is not enough"
    return format_seeds_needed(None if None in needed else max(n for n in needed if n is not None))


def _deciding_check(verdict: Verdict) -> Check:
    """Return the check that decides a verdict.

    It is the clearest one against a contradicted claim, and otherwise the weakest one.
    """
    if verdict.word == CONTRADICTED:
        return min((check for check in verdict.checks if check.gain < 0), key=lambda check: check.p)
    return max(verdict.checks, key=lambda c: (not c.holds, c.gain <= 0, math.inf if math.isnan(c.p) else c.p))


def _numbers(results: Results, check: Check) -> str:
    title = results.label(check.metric)
    arrow = "" if check.what.startswith(GAP_PREFIX) else f" {results.arrow(check.metric)}".rstrip()
    detail = f", {check.detail}" if check.detail else ""
    value = signed(check.value).removesuffix(" (n=1)")
    return f"{check.what}: {value} {title}{arrow}{check.unit}, {p_value(check.p)}, n={check.value.n}{detail}"


def _pairs(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    found = pairs(results, claim)
    if not found:
        return [], _why_no_pair(results, claim)
    checks = []
    for arm, against in found:
        for metric in metrics:
            sign = -1.0 if results.lower_is_better(metric) else 1.0
            values = differences(results.frame, final_metric(metric), arm, against)
            checks.append(_pair_check(results, claim, f"{arm} against {against}", metric, values, sign, against))
    return checks, ""


def _pair_check(
    results: Results, claim: Claim, what: str, metric: str, values: np.ndarray, sign: float, against: str
) -> Check:
    """Return Student's paired t test of the gain, plus the margin for not_worse.

    The margin is a share of the mean of `against`, which is taken as known.
    """
    share, detail = claim.margin.get(metric, 0.0), ""
    margin = share * abs(float(results.frame.loc[results.frame["arm"] == against, final_metric(metric)].mean()))
    if claim.kind == "not_worse":
        detail = f"margin {format_number(margin, digits=2)}"
    tested = paired_test(sign * values + margin)
    needed = _at_least_one_more(seeds_needed(tested.difference.mean, tested.deviation), tested.n)
    shown = paired_test(values).difference
    return Check(what, metric, shown, "", tested.difference.mean, tested.p, needed, detail)


def _trends(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    checks = []
    for group, arms in _groups(results, claim).items():
        places = {arm: place for arm in arms if _number(place := value_of(results, arm, claim.axis))}
        part = results.frame[results.frame["arm"].isin(places)]
        part = part.assign(place=part["arm"].map(places))
        for metric in metrics:
            table = part.pivot_table(index="seed", columns="place", values=final_metric(metric), aggfunc="mean")
            found = trend_of(table)
            if found:
                towards = 1.0 if claim.better == "larger" else -1.0
                sign = -towards if results.lower_is_better(metric) else towards
                what = f"trend over {labels.setting_label(claim.axis)}{group}"
                checks.append(_trend_check(what, metric, found, sign))
    narrowed = f" among arms with {words(claim.where)}" if claim.where else ""
    return checks, f"fewer than two values of {claim.axis} per seed{narrowed}"


def _groups(results: Results, claim: Claim) -> dict[str, list[str]]:
    """Return the arms of a trend by the settings they share.

    The key is "" if there is only one group.
    """
    groups: dict[str, list[str]] = {}
    for arm in select(results, claim.where):
        agree = ", ".join(f"{labels.setting_label(key)} {value_of(results, arm, key)}" for key in claim.same)
        groups.setdefault(f" at {agree}" if agree else "", []).append(arm)
    return groups if len(groups) > 1 else {"": next(iter(groups.values()), [])}


def _gaps(results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
    """Check the trend of the lead of `arm` over `against`.

    Axis values that only one of them has are left out.
    """
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
        sign = -1.0 if results.lower_is_better(metric) else 1.0
        table = results.frame.pivot_table(index="seed", columns="arm", values=final_metric(metric), aggfunc="mean")
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
    needed = _at_least_one_more(seeds_needed(found.slope.mean, found.deviation), found.n)
    right, every = found.steps
    detail = f"{found.test}, rho {found.rho:.2f}, {right} of {every} steps in that direction"
    unit = f" per {found.unit}"
    return Check(what, metric, found.slope, unit, sign * found.slope.mean, found.p, needed, detail)


def _at_least_one_more(needed: int | None, have: int) -> int | None:
    """Return at least one seed more than an inconclusive check has.

    The estimate from few seeds may be lower.
    """
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
