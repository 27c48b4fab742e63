"""Provide the model core: one configurable DiT for every study."""

from microdit.model.checkpoint_import import import_released, load_imported_folder, load_released, released_config
from microdit.model.config import DiTConfig, MaskingConfig
from microdit.model.dit import DiT
from microdit.model.masking.base import MaskingLossInputs
from microdit.model.masking.patch_mask import PatchMask, mask_from_keep, random_mask
from microdit.model.presets import PRESETS, list_presets, preset

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
