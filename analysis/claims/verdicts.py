"""Judge claims: reproduced, contradicted, inconclusive or not tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.claims.kinds.base import Check
from analysis.claims.kinds.registry import kind_of
from analysis.claims.selection import claims_of
from analysis.io.columns import mean_or_none
from analysis.io.results import Results
from analysis.stats.paired import holm, p_value
from analysis.stats.power import ALPHA, format_seeds_needed
from microdit.common.contract import final_metric
from microdit.common.errors import ConfigError
from microdit.common.numbers import signed
from microdit.common.stores.claims import Claim

REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = "reproduced", "contradicted", "inconclusive", "not tested here"


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
    """Return the verdict on one claim.

    Args:
        results: the study's finished runs.
        claim: the claim.
    """
    metrics = [m for m in claim.metrics if mean_or_none(results.frame, final_metric(m)) is not None]
    if not metrics:
        return Verdict(claim, NOT_TESTED, (), why=f"no run has {', '.join(claim.metrics)}")
    try:
        found, why = kind_of(results.study, claim).checks(results, claim, metrics)
    except ConfigError as error:  # the launch has stored the claim, so an exception would prevent every report
        return Verdict(claim, NOT_TESTED, (), why=str(error))
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
    """Return a verdict and its numbers in one line of Markdown.

    Args:
        results: the study's runs.
        verdict: the verdict.
    """
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

    Args:
        results: the study's runs.
        verdict: the verdict, which must have checks.
    """
    claim, checks = verdict.claim, verdict.checks
    missing = [metric for metric in claim.metrics if metric not in {check.metric for check in checks}]
    untested = f" Not tested: {', '.join(missing)}." if missing else ""
    holding = sum(check.holds for check in checks)
    count = f"holds in {holding} of {len(checks)} checks; " if len(checks) > 1 else ""
    return f"{count}{_numbers(results, _deciding_check(verdict))}.{untested}"


def table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as a table, one row per check, or per claim without checks.

    Args:
        found: the verdicts.

    Returns:
        Columns claim, trust, source, section, kind, verdict; check, metric, n, value with its 95% bounds low and high,
        unit, p, holds, detail, seeds_needed.
    """
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
    """Return how many seeds the open checks need at their observed effects."""
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
    arrow = f" {results.arrow(check.metric)}".rstrip() if check.has_direction else ""
    detail = f", {check.detail}" if check.detail else ""
    value = signed(check.value).removesuffix(" (n=1)")
    return f"{check.what}: {value} {title}{arrow}{check.unit}, {p_value(check.p)}, n={check.value.n}{detail}"
