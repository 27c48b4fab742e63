"""The model core: one configurable DiT for every study."""

from microdit.model.config import DiTConfig
from microdit.model.dit import DiT
from microdit.model.mask_plan import MaskPlan, plan_from_keep, random_plan
from microdit.model.masking import Denoised, MaskingConfig
from microdit.model.matching import match_constant
from microdit.model.presets import PRESETS, preset
from microdit.model.released import import_released, load_imported, load_released, released_config

__all__ = [
    "PRESETS",
    "Denoised",
    "DiT",
    "DiTConfig",
    "MaskPlan",
    "MaskingConfig",
    "import_released",
    "load_imported",
    "load_released",
    "match_constant",
    "plan_from_keep",
    "preset",
    "random_plan",
    "released_config",
]
