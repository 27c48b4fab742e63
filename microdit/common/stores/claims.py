"""Define the form of a claim about a study.

Claims are in `analysis/claims/claims.yaml` and under `claims` in a study's own YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from microdit.common.errors import ConfigError, named, nearest, shown
from microdit.common.parsing import parse

Selector = Mapping[str, Any]  # settings that select arms

OWN_SOURCE = "this study"  # source of a claim that a study's YAML makes without naming one
PAIR_KEYS = ("arm", "against")  # not needed if `pairs` selects the arms


NEEDS: Mapping[str, tuple[str, ...]] = {  # fields of our kinds; `analysis.claims.kinds` has the implementations
    "better": PAIR_KEYS,
    "not_worse": ("margin", *PAIR_KEYS),
    "trend": ("axis", "better"),
    "gap_grows": ("axis", *PAIR_KEYS),
}
PAIRED_KINDS = ("better", "not_worse")  # whose pairs of arms `pairs` may select
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


def parse_claim(values: Any, source: str, own: bool = False) -> Claim:
    """Return the claim that a mapping describes.

    A kind named by a dotted path is not imported, so only the fields that all kinds share are checked.

    Args:
        values: the mapping.
        source: file and place, for messages.
        own: whether a study makes the claim about itself. It then has no trust level, `source` is the study, and `kind`
            may be a dotted path.

    Raises:
        ConfigError: if a key is unknown or missing, or a value is not allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: a claim must be a mapping, not {shown(values)}")
    place = f"{source}, '{named(str(values.get('text', '?')))}'"
    if own and "trust" in values:
        raise ConfigError(f"{place}: unknown key 'trust'; a study's own claim has no trust level")
    claim = parse(Claim, {"trust": "", "source": OWN_SOURCE, **values} if own else values, place)
    for key in ("text", "kind", "metrics") if own else ("text", "trust", "kind", "metrics"):
        if not getattr(claim, key):
            raise ConfigError(f"{place}: '{key}' is missing")
    _check_kind(claim, place, own)
    _check_values(claim, place)
    return claim


def _check_kind(claim: Claim, place: str, own: bool) -> None:
    if own and claim.has_own_kind and all(part.isidentifier() for part in claim.kind.split(".")):
        return
    if claim.kind not in NEEDS:
        hint = " (or name a class of yours by its dotted path)" if own else ""
        raise ConfigError(f"{place}: 'kind' is '{named(claim.kind)}'; {nearest(claim.kind, NEEDS)}{hint}")
    if claim.options:
        raise ConfigError(f"{place}: a claim of kind {claim.kind} has no 'options'; only a kind of your own has")
    if claim.margin and "margin" not in NEEDS[claim.kind]:
        raise ConfigError(f"{place}: a claim of kind {claim.kind} has no 'margin'; kind not_worse allows a difference")
    paired = claim.pairs and claim.kind in PAIRED_KINDS
    for key in NEEDS[claim.kind]:
        if not getattr(claim, key) and not (paired and key in PAIR_KEYS):
            raise ConfigError(f"{place}: a claim of kind {claim.kind} needs '{key}'")


def _check_values(claim: Claim, place: str) -> None:
    for key, choices in (("better", ("larger", "smaller")), ("pairs", ("successive",))):
        value = getattr(claim, key)
        if value not in ("", *choices):
            raise ConfigError(f"{place}: '{key}' is '{named(value)}'; {nearest(value, choices)}")
    for metric, margin in claim.margin.items():
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin < float("inf"):
            raise ConfigError(
                f"{place}: 'margin' of {named(metric)} is {shown(margin)}; it must be a number of at least 0"
            )
    for selector in (claim.arm, claim.against, claim.where):
        for wanted in selector.values():
            wrong = [word for word in wanted if word not in BOUNDS] if isinstance(wanted, Mapping) else []
            if wrong:
                raise ConfigError(f"{place}: unknown condition '{named(wrong[0])}'; {nearest(wrong[0], BOUNDS)}")
