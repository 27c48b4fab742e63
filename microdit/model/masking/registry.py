"""List the masking methods by name."""

from __future__ import annotations

from microdit.common.registry import Registry
from microdit.model.config import DiTConfig
from microdit.model.masking.base import DeferredMasking, Masking, NaiveMasking, NoMasking
from microdit.model.masking.maskdit import MaskDiT
from microdit.model.masking.sprint import SparseDenseFusion
from microdit.model.masking.tread import TokenRouting

MASKING_METHODS: Registry[type[Masking]] = Registry(
    "model.masking.method",
    {
        "none": NoMasking,
        "naive": NaiveMasking,
        "deferred": DeferredMasking,
        "maskdit": MaskDiT,
        "routing": TokenRouting,
        "sprint": SparseDenseFusion,
    },
)
register_masking = MASKING_METHODS.register


def build_masking(config: DiTConfig) -> Masking:
    """Build the masking method that `config` names.

    Returns:
        The method, a module of the network.

    Raises:
        ConfigError: if the name is unknown.
    """
    return MASKING_METHODS.resolve(config.masking.method)(config)
