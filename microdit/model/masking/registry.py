"""List the masking methods by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import Registry
from microdit.model.config import DiTConfig

if TYPE_CHECKING:
    from microdit.model.masking.base import Masking

MASKING_METHODS: Registry[type[Masking]] = Registry(
    "model.masking.method",
    {
        "none": "microdit.model.masking.base.NoMasking",
        "naive": "microdit.model.masking.base.NaiveMasking",
        "deferred": "microdit.model.masking.base.DeferredMasking",
        "maskdit": "microdit.model.masking.maskdit.MaskDiT",
        "routing": "microdit.model.masking.tread.TokenRouting",
        "sprint": "microdit.model.masking.sprint.SparseDenseFusion",
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
