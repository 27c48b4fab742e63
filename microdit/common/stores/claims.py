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
PAIR_KEYS = ("arm", "against")  # not needed if `pairs` selects the arms


@dataclass(frozen=True)
class ClaimForm:
    """List the fields that a kind of claim needs.

    They are checked without importing the kind.

    Attributes:
        needs: names of fields that must have a value.
        takes_pairs: whether the field `pairs` may replace `arm` and `against`.
    """

    needs: tuple[str, ...]
    takes_pairs: bool = False


FORMS: Mapping[str, ClaimForm] = {  # our kinds; `analysis.claims.kinds.registry` has the implementations
    "better": ClaimForm(PAIR_KEYS, takes_pairs=True),
    "not_worse": ClaimForm(("margin", *PAIR_KEYS), takes_pairs=True),
    "trend": ClaimForm(("axis", "better")),
    "gap_grows": ClaimForm(("axis", *PAIR_KEYS)),
}
TYPES: Mapping[str, type] = {
    **dict.fromkeys(("text", "trust", "kind", "section", "source", "pairs", "axis", "better"), str),
    **dict.fromkeys(("arm", "against", "where", "margin", "options"), dict),
    **dict.fromkeys(("metrics", "same"), list),
}
TYPE_NAMES: Mapping[type, str] = {str: "text", dict: "a mapping", list: "a list"}
BOUNDS = ("above", "below", "least", "most", "not")


@dataclass(frozen=True)
class Claim:
    """Hold one claim; the comment at the top of claims.yaml explains the fields."""

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
    options: Mapping[str, Any] = field(default_factory=dict)  # free settings of a kind named by a dotted path

    @property
    def has_own_kind(self) -> bool:
        """Return whether the kind is a user's class, named by its dotted path."""
        return "." in self.kind

    @property
    def setting_keys(self) -> tuple[str, ...]:
        """Return the settings that the claim refers to.

        Returns:
            Dotted keys, each once.
        """
        selected = (*self.arm, *self.against, *self.where, *self.same, self.axis)
        return tuple(dict.fromkeys(key for key in selected if key))


def parse_claim(values: Any, source: str, error: type[MicroditError] = ConfigError, own: bool = False) -> Claim:
    """Return the claim that a mapping describes.

    A kind named by a dotted path is not imported, so only the fields that all kinds share are checked.

    Args:
        values: the mapping.
        source: file and place, for messages.
        error: class of the exception.
        own: whether a study makes the claim about itself. It then has no trust level, `source` is the study, and `kind`
            may be a dotted path.

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
    _check_kind(claim, place, error, own)
    _check_values(claim, place, error)
    return claim


def unread_margin(claim: Claim) -> str:
    """Return why a claim must not have its margin, "" if its kind reads it."""
    if not claim.margin or claim.kind not in FORMS or "margin" in FORMS[claim.kind].needs:
        return ""
    return f"a claim of kind {claim.kind} has no 'margin'; kind not_worse allows a difference"


def _check_kind(claim: Claim, place: str, error: type[MicroditError], own: bool) -> None:
    if own and claim.has_own_kind and all(part.isidentifier() for part in claim.kind.split(".")):
        return
    if claim.kind not in FORMS:
        hint = " (or name a class of yours by its dotted path)" if own else ""
        raise error(f"{place}: 'kind' is '{named(claim.kind)}'; {nearest(claim.kind, FORMS)}{hint}")
    if claim.options:
        raise error(f"{place}: a claim of kind {claim.kind} has no 'options'; only a kind of your own has")
    form = FORMS[claim.kind]
    for key in form.needs:
        if not getattr(claim, key) and not (form.takes_pairs and claim.pairs and key in PAIR_KEYS):
            raise error(f"{place}: a claim of kind {claim.kind} needs '{key}'")


def _check_values(claim: Claim, place: str, error: type[MicroditError]) -> None:
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
