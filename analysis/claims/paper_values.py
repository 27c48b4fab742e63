"""What the paper reports, beside an arm of ours where one corresponds: always with how far the value can be trusted."""

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
    """An FID of the paper's; `trust` is a word of paper_facts.yaml's legend."""

    arm: str
    fid: float
    trust: str
    match: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.fid:g} ({self.trust})"


@cache
def facts() -> Mapping[str, Any]:
    """paper_facts.yaml."""
    return yaml.safe_load((files("analysis.claims") / "paper_facts.yaml").read_text(encoding="utf-8"))


def paper_values(study: str) -> list[PaperValue]:
    """All values of the paper for `study`, none for a study that it doesn't have."""
    found = (facts()["studies"].get(study) or {}).get("values") or []
    return [PaperValue(v["arm"], float(v["fid"]), v["trust"], v.get("match") or {}) for v in found]


def paper_value(study: str, settings: Mapping[str, Any]) -> PaperValue | None:
    """The value whose `match` agrees with an arm's `settings` (config keys to values), None where none does."""
    for value in paper_values(study):
        if value.match and all(loosely_equal(settings.get(key), wanted) for key, wanted in value.match.items()):
            return value
    return None


def trust_meaning(word: str) -> str:
    """The legend of a trust word."""
    return facts()["trust"][word]


def citation() -> str:
    """The paper as a line of text names it."""
    return f"arXiv {facts()['paper']['arxiv']}, {facts()['paper']['venue']}"
