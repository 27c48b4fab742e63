"""Test claims that a score, or the gap between two arms, changes along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import labels
from analysis.claims.kinds.base import Check, ClaimKind, at_least_one_more
from analysis.claims.selection import select, value_of, words
from analysis.io.results import Results
from analysis.stats.power import seeds_needed
from analysis.stats.trend import Trend, trend_of
from microdit.common.contract import final_metric
from microdit.common.stores.claims import Claim


class ImprovesAlongAxis(ClaimKind):
    """The score improves along `axis`, towards its `better` end."""

    def checks(self, results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
        checks = []
        for group, arms in _groups(results, claim).items():
            places = {arm: place for arm in arms if _is_number(place := value_of(results, arm, claim.axis))}
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


class GapGrows(ClaimKind):
    """The lead of `arm` over `against` grows with `axis`, on the values of both."""

    def checks(self, results: Results, claim: Claim, metrics: Sequence[str]) -> tuple[list[Check], str]:
        at = {}
        for arm in select(results, claim.arm):
            for against in select(results, claim.against):
                place, other = value_of(results, arm, claim.axis), value_of(results, against, claim.axis)
                if _is_number(place) and place == other:
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
                what = f"gap over {labels.setting_label(claim.axis)}"
                checks.append(_trend_check(what, metric, found, 1.0, has_direction=False))
        return checks, "no seed has two values of the axis"


def _groups(results: Results, claim: Claim) -> dict[str, list[str]]:
    """Return the arms of a trend by the settings they share; one group has the key ""."""
    groups: dict[str, list[str]] = {}
    for arm in select(results, claim.where):
        agree = ", ".join(f"{labels.setting_label(key)} {value_of(results, arm, key)}" for key in claim.same)
        groups.setdefault(f" at {agree}" if agree else "", []).append(arm)
    return groups if len(groups) > 1 else {"": next(iter(groups.values()), [])}


def _trend_check(what: str, metric: str, found: Trend, sign: float, has_direction: bool = True) -> Check:
    needed = at_least_one_more(seeds_needed(found.slope.mean, found.deviation), found.n)
    right, every = found.steps
    detail = f"{found.test}, rho {found.rho:.2f}, {right} of {every} steps in that direction"
    unit = f" per {found.unit}"
    gain = sign * found.slope.mean
    return Check(what, metric, found.slope, unit, gain, found.p, needed, detail, has_direction)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))
