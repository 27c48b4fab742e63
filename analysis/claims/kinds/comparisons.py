"""Test claims that one arm is better, or not worse, than another."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.claims.kinds.base import Check, ClaimKind, check_of_gains
from analysis.claims.selection import pairs, select, words
from analysis.io.results import Results
from analysis.stats.paired import differences
from microdit.common.contract import final_metric
from microdit.common.numbers import format_number
from microdit.common.stores.claims import Claim


class Better(ClaimKind):
    """`arm` beats `against`, at the same seeds."""

    def checks(self, results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
        found = pairs(results, claim)
        if not found:
            return [], _why_no_pair(results, claim)
        checks = []
        for arm, against in found:
            for metric in metrics:
                values = differences(results.frame, final_metric(metric), arm, against)
                gains = -values if results.lower_is_better(metric) else values
                margin = _margin(results, claim, against, metric)
                what, detail = f"{arm} against {against}", self.detail(margin)
                checks.append(check_of_gains(what, metric, values, gains + margin, detail))
        return checks, ""

    def detail(self, margin: float) -> str:
        """Return what is printed after the numbers of a check.

        Args:
            margin: of the check, in the metric's units.
        """
        return ""


class NotWorse(Better):
    """`arm` is worse than `against` by less than a margin."""

    def detail(self, margin: float) -> str:
        return f"margin {format_number(margin, digits=2)}"


def _margin(results: Results, claim: Claim, against: str, metric: str) -> float:
    """Return the claim's share of the mean of `against`, which is taken as known."""
    mean = float(results.frame.loc[results.frame["arm"] == against, final_metric(metric)].mean())
    return claim.margin.get(metric, 0.0) * abs(mean)


def _why_no_pair(results: Results, claim: Claim) -> str:
    if claim.pairs:
        return "fewer than two arms"
    for selector in (claim.arm, claim.against):
        if not select(results, selector):
            return f"no arm with {words(selector)}"
    return f"no two arms with the same {' and '.join(claim.same)}"
