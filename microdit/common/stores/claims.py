"""Define the form of a claim about a study.

Claims are in `analysis/claims/claims.yaml` and under `claims` in a study's own YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from microdit.common.errors import ConfigError, MicroditError, named, nearest, shown

Selector = Mapping[str, Any]  # settings that select arms

OWN_SOURCE = "this study"  # source of a claim that a study's YAML makes without naming one
KINDS = ("better", "not_worse", "trend", "gap_grows")
NEEDED_KEYS = {
    "trend": ("axis", "better"),
    "gap_grows": ("axis", "arm", "against"),
    "not_worse": ("margin",),
    "better": (),
}
TYPES: Mapping[str, type] = {
    **dict.fromkeys(("text", "trust", "kind", "section", "source", "pairs", "axis", "better"), str),
    **dict.fromkeys(("arm", "against", "where", "margin"), dict),
    **dict.fromkeys(("metrics", "same"), list),
}
TYPE_NAMES: Mapping[type, str] = {str: "text", dict: "a mapping", list: "a list"}
BOUNDS = ("above", "below", "least", "most", "not")


@dataclass(frozen=True)
class Claim:
    """One claim. The comment at the top of claims.yaml explains the fields."""

    text: str
    trust: str  # "" for a claim of the study's own
    kind: str
    metrics: tuple[str, ...]
    section: str = ""
    source: str = ""
    arm: Selector = field(default_factory=dict)
    against: Selector = field(default_factory=dict)
    same: tuple[str, ...] = ()
    pairs: str = ""
    axis: str = ""
    better: str = ""
    where: Selector = field(default_factory=dict)
    margin: Mapping[str, float] = field(default_factory=dict)

    @property
    def setting_keys(self) -> tuple[str, ...]:
        """The settings that the claim refers to."""
        selected = (*self.arm, *self.against, *self.where, *self.same, self.axis)
        return tuple(dict.fromkeys(key for key in selected if key))


def parse_claim(values: Any, source: str, error: type[MicroditError] = ConfigError, own: bool = False) -> Claim:
    """Return the claim that a mapping describes.

    Args:
        values: the mapping.
        source: file and place, for messages.
        error: class of the exception.
        own: whether a study makes the claim about itself: it has no trust level, and `source` is the study.

    Raises:
        error: if a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(values, Mapping):
        raise error(f"{source}: a claim must be a mapping, not {shown(values)}")
    place = f"{source}, '{named(str(values.get('text', '?')))}'"
    known = [f.name for f in fields(Claim) if not (own and f.name == "trust")]
    for key in values:
        if key not in known:
            raise error(f"{place}: unknown key '{named(key)}'; {nearest(key, known)}")
    missing = [key for key in ("text", "trust", "kind", "metrics") if key in known and not values.get(key)]
    if missing:
        raise error(f"{place}: '{missing[0]}' is missing")
    for name, kind in TYPES.items():
        if not isinstance(values.get(name, kind()), kind):
            raise error(f"{place}: '{name}' must be {TYPE_NAMES[kind]}, not {shown(values[name])}")
    defaults = {"trust": "", "source": OWN_SOURCE} if own else {}
    lists = {"metrics": tuple(map(str, values["metrics"])), "same": tuple(map(str, values.get("same", ())))}
    claim = Claim(**{**defaults, **values, **lists})
    _check_values(claim, place, error)
    return claim


def _check_values(claim: Claim, place: str, error: type[MicroditError]) -> None:
    if claim.kind not in KINDS:
        raise error(f"{place}: 'kind' is '{named(claim.kind)}'; {nearest(claim.kind, KINDS)}")
    needed = NEEDED_KEYS[claim.kind]
    if claim.kind in ("better", "not_worse") and not claim.pairs:
        needed = (*needed, "arm", "against")
    for key in needed:
        if not getattr(claim, key):
            raise error(f"{place}: a claim of kind {claim.kind} needs '{key}'")
    for key, choices in (("better", ("larger", "smaller")), ("pairs", ("successive",))):
        value = getattr(claim, key)
        if value not in ("", *choices):
            raise error(f"{place}: '{key}' is '{named(value)}'; {nearest(value, choices)}")
    for metric, margin in claim.margin.items():
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < float("inf"):
            raise error(f"{place}: 'margin' of {named(metric)} is {shown(margin)}; it must be a number of at least 0")
    for selector in (claim.arm, claim.against, claim.where):
        for wanted in selector.values():
            wrong = [word for word in wanted if word not in BOUNDS] if isinstance(wanted, Mapping) else []
            if wrong:
                raise error(f"{place}: unknown condition '{named(wrong[0])}'; {nearest(wrong[0], BOUNDS)}")
