"""Provide the model core: one configurable DiT for every study.

Names are imported when they are first used, so that the settings can be read without loading PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.model.checkpoint_import import import_released as import_released
    from microdit.model.checkpoint_import import load_imported_folder as load_imported_folder
    from microdit.model.checkpoint_import import load_released as load_released
    from microdit.model.checkpoint_import import released_config as released_config
    from microdit.model.config import DiTConfig as DiTConfig
    from microdit.model.config import MaskingConfig as MaskingConfig
    from microdit.model.dit import DiT as DiT
    from microdit.model.masking.base import MaskingLossInputs as MaskingLossInputs
    from microdit.model.masking.patch_mask import PatchMask as PatchMask
    from microdit.model.masking.patch_mask import mask_from_keep as mask_from_keep
    from microdit.model.masking.patch_mask import random_mask as random_mask
    from microdit.model.presets import PRESETS as PRESETS
    from microdit.model.presets import list_presets as list_presets
    from microdit.model.presets import preset as preset

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

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
