"""The masking methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.model.maskdit import MaskDiT
from microdit.model.masking import DeferredMasking, Masking, NaiveMasking, NoMasking
from microdit.model.routing import SparseDenseFusion, TokenRouting
from microdit.roles import resolve

if TYPE_CHECKING:
    from microdit.model.config import DiTConfig

MASKINGS: dict[str, type[Masking]] = {
    "none": NoMasking,
    "naive": NaiveMasking,
    "deferred": DeferredMasking,
    "maskdit": MaskDiT,
    "routing": TokenRouting,
    "sprint": SparseDenseFusion,
}


def build_masking(config: DiTConfig) -> Masking:
    """The method that `config` names."""
    return resolve(config.masking.method, MASKINGS, "model.masking.method")(config)
