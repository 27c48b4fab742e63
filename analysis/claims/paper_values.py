"""Match values that the paper reports to arms, with their trust levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from analysis.io.run_config import loosely_equal


@dataclass(frozen=True)
class PaperValue:
    """An FID that the paper reports, with a trust level of paper_facts.yaml."""

    arm: str
    fid: float
    trust: str
    match: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.fid:g} ({self.trust})"


@cache
def facts() -> Mapping[str, Any]:
    """Return the content of paper_facts.yaml."""
    return yaml.safe_load((files("analysis.claims") / "paper_facts.yaml").read_text(encoding="utf-8"))


def paper_values(study: str) -> list[PaperValue]:
    """Return all values that the paper reports for a study, perhaps none."""
    found = (facts()["studies"].get(study) or {}).get("values") or []
    return [PaperValue(v["arm"], float(v["fid"]), v["trust"], v.get("match") or {}) for v in found]


def paper_value(study: str, settings: Mapping[str, Any]) -> PaperValue | None:
    """Return the paper's value for an arm, None if there is none.

    Args:
        study: the study's name.
        settings: of the arm, by dotted key; the value whose `match` agrees with them is returned.
    """
    for value in paper_values(study):
        if value.match and all(loosely_equal(settings.get(key), wanted) for key, wanted in value.match.items()):
            return value
    return None


def trust_meaning(word: str) -> str:
    """Return what a trust level means."""
    return facts()["trust"][word]


def citation() -> str:
    """Return a short citation of the paper."""
    return f"arXiv {facts()['paper']['arxiv']}, {facts()['paper']['venue']}"
