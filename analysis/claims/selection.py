"""Read claims about studies, and select the arms that they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from analysis.io.results import Results
from analysis.io.run_config import loosely_equal, setting
from analysis.io.study import Study
from microdit.common.contract import COST_PREFIX
from microdit.common.stores.claims import Claim, Selector, parse_claim

SOURCE = "claims.yaml"


@cache
def all_claims() -> Mapping[str, tuple[Claim, ...]]:
    """Return the claims of claims.yaml.

    Returns:
        Claims by study.
    """
    found = yaml.safe_load((files("analysis.claims") / SOURCE).read_text(encoding="utf-8"))
    return {
        study: tuple(parse_claim(claim, f"{SOURCE}, {study}") for claim in listed) for study, listed in found.items()
    }


def claims_of(study: Study) -> tuple[Claim, ...]:
    """Return the claims about a study.

    Returns:
        Those of claims.yaml, then the study's own.
    """
    return (*all_claims().get(study.name, ()), *study.claims)


def select(results: Results, selector: Selector) -> list[str]:
    """Return the arms that match a selector, in the study's order.

    Args:
        results: the study's runs; arms without a finished run are left out.
        selector: conditions by dotted key, as in claims.yaml.
    """
    return [arm for arm in results.arms if all(_fits(value_of(results, arm, k), v) for k, v in selector.items())]


def pairs(results: Results, claim: Claim) -> list[tuple[str, str]]:
    """Return the pairs of arms that a claim compares.

    Args:
        results: the study's runs.
        claim: selects both arms of a pair, which agree in the settings of `same`.

    Returns:
        Pairs (arm, against).
    """
    if claim.pairs == "successive":
        arms = select(results, claim.where)
        return [(after, before) for before, after in zip(arms, arms[1:], strict=False)]
    found = []
    for arm in select(results, claim.arm):
        for against in select(results, claim.against):
            alike = (loosely_equal(value_of(results, arm, key), value_of(results, against, key)) for key in claim.same)
            if arm != against and all(alike):
                found.append((arm, against))
    return found


def value_of(results: Results, arm: str, key: str) -> Any:
    """Return an arm's value of a key; None if it has none.

    Args:
        results: the study's runs.
        arm: the arm.
        key: `arm` for its name, `cost/...` for a mean cost, else the dotted key of a setting.
    """
    if key == "arm":
        return arm
    if key.startswith(COST_PREFIX):
        runs = results.frame[results.frame["arm"] == arm]
        return float(runs[key].mean()) if key in runs else None
    return setting(results.settings(arm), key)


def words(selector: Selector) -> str:
    """Return a selector in print, such as `model.masking.method=maskdit`."""
    parts = []
    for key, wanted in selector.items():
        if isinstance(wanted, Mapping):
            parts += [f"{key} {bound} {value}" for bound, value in wanted.items()]
        else:
            listed = wanted if isinstance(wanted, list) else [wanted]
            parts.append(f"{key}={'|'.join(str(value) for value in listed)}")
    return ", ".join(parts)


def _fits(have: Any, wanted: Any) -> bool:
    if have is None:
        return False
    if isinstance(wanted, Mapping):
        return all(_bounded(have, bound, value) for bound, value in wanted.items())
    listed: Sequence[Any] = wanted if isinstance(wanted, list) else [wanted]
    return any(fnmatchcase(have, value) if _pattern(have, value) else loosely_equal(have, value) for value in listed)


def _pattern(have: Any, value: Any) -> bool:
    return isinstance(have, str) and isinstance(value, str) and "*" in value


def _bounded(have: Any, bound: str, value: Any) -> bool:
    if bound == "not":
        return not loosely_equal(have, value)
    if not isinstance(have, int | float):
        return False
    return {"above": have > value, "below": have < value, "least": have >= value, "most": have <= value}[bound]
