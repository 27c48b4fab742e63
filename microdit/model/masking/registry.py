"""The masking methods by name."""

from __future__ import annotations

from microdit.common.registry import resolve
from microdit.model.config import DiTConfig
from microdit.model.masking.base import DeferredMasking, Masking, NaiveMasking, NoMasking
from microdit.model.masking.maskdit import MaskDiT
from microdit.model.masking.sprint import SparseDenseFusion
from microdit.model.masking.tread import TokenRouting

MASKING_METHODS: dict[str, type[Masking]] = {
    "none": NoMasking,
    "naive": NaiveMasking,
    "deferred": DeferredMasking,
    "maskdit": MaskDiT,
    "routing": TokenRouting,
    "sprint": SparseDenseFusion,
}


def build_masking(config: DiTConfig) -> Masking:
    """The method that `config` names."""
    return resolve(config.masking.method, MASKING_METHODS, "model.masking.method")(config)
