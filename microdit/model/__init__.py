"""Provide the model core: one configurable DiT for every study.

Names are imported when they are first used, so that the settings can be read without loading PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.model.checkpoint_import import import_released, load_imported_folder, load_released, released_config
    from microdit.model.config import DiTConfig, MaskingConfig
    from microdit.model.dit import DiT
    from microdit.model.masking.base import MaskingLossInputs
    from microdit.model.masking.patch_mask import PatchMask, mask_from_keep, random_mask
    from microdit.model.presets import PRESETS, list_presets, preset

PUBLIC = {
    "PRESETS": "presets",
    "DiT": "dit",
    "DiTConfig": "config",
    "MaskingConfig": "config",
    "MaskingLossInputs": "masking.base",
    "PatchMask": "masking.patch_mask",
    "import_released": "checkpoint_import",
    "list_presets": "presets",
    "load_imported_folder": "checkpoint_import",
    "load_released": "checkpoint_import",
    "mask_from_keep": "masking.patch_mask",
    "preset": "presets",
    "random_mask": "masking.patch_mask",
    "released_config": "checkpoint_import",
}

__all__ = [
    "PRESETS",
    "DiT",
    "DiTConfig",
    "MaskingConfig",
    "MaskingLossInputs",
    "PatchMask",
    "import_released",
    "list_presets",
    "load_imported_folder",
    "load_released",
    "mask_from_keep",
    "preset",
    "random_mask",
    "released_config",
]

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
