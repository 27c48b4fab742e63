"""List the kinds of claims by name; a study's own kinds have dotted paths."""

from __future__ import annotations

from analysis.claims.kinds.base import ClaimKind
from analysis.claims.kinds.comparisons import Better, NotWorse
from analysis.claims.kinds.trends import GapGrows, ImprovesAlongAxis
from analysis.io.study import Study
from microdit.common.errors import ConfigError
from microdit.common.registry import Registry, import_plugins
from microdit.common.stores.claims import Claim

CLAIM_KINDS: Registry[type[ClaimKind]] = Registry(
    "kind",
    {"better": Better, "not_worse": NotWorse, "trend": ImprovesAlongAxis, "gap_grows": GapGrows},
    base=ClaimKind,
)


def kind_of(study: Study, claim: Claim) -> ClaimKind:
    """Return the kind of a claim.

    Of the study's plugins, only the module of a dotted path is imported, so that a report needs no other file of the
    study.

    Args:
        study: lists the plugins.
        claim: names the kind.

    Raises:
        ConfigError: if the kind's module is not listed in the study's `plugins` or can't be imported, its class does
            not derive from `ClaimKind`, or the claim lacks a field that the kind needs.
    """
    import_plugins(name for name in study.plugins if claim.kind.startswith(f"{name}."))
    kind = CLAIM_KINDS.resolve(claim.kind)()
    missing = [key for key in kind.needs if not getattr(claim, key, None)]
    if missing:
        raise ConfigError(f"a claim of kind {claim.kind} needs '{missing[0]}'")
    return kind
