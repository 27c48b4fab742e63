"""List architectures by name, one row each."""

from __future__ import annotations

from typing import Any

from microdit.common.errors import ConfigError, nearest
from microdit.model.config import DiTConfig, ExpertsConfig, MaskingConfig, MixerConfig
from microdit.model.width_schedules import WidthConfig

# The paper's ablations use DiT-Tiny/2 at 256 px (32x32x4 latents) with 1024-wide caption features. The DiTs here have
# constant width and dense feed-forwards; the released models grow layer-wise and have experts in every second block.
#             width depth head  mixer: depth width   layer-wise + experts
_ROWS = {
    "DiT-Tiny/2":       (512,  16, 32,        4,  512,  False),
    "DiT-XL/2":         (1024, 28, 64,        6,  768,  False),
    "MicroDiT-Tiny/2":  (512,  16, 32,        4,  512,  True),
    "MicroDiT-XL/2":    (1024, 28, 64,        6,  768,  True),
}  # fmt: skip

PRESETS = tuple(_ROWS)
ALIASES = {"MicroDiT_Tiny_2": "MicroDiT-Tiny/2", "MicroDiT_XL_2": "MicroDiT-XL/2"}  # names in the released code


def list_presets() -> tuple[str, ...]:
    """Return the names that `preset` and `DiT.from_preset` accept.

    Returns:
        Our names; released ones such as MicroDiT_XL_2 are accepted as aliases.
    """
    return PRESETS


def preset(name: str) -> DiTConfig:
    """Return a named architecture.

    The latents are 32 x 32 x 4 (256 px) and captions have 1024 channels; use `dataclasses.replace` to change a setting.

    Args:
        name: one of `list_presets()`, or a released name in `ALIASES`.

    Raises:
        ConfigError: if there is no such preset; suggests the nearest name.
    """
    name = ALIASES.get(name, name)
    if name not in _ROWS:
        raise ConfigError(f"there is no preset '{name}'; {nearest(name, (*PRESETS, *ALIASES))}")
    width, depth, head_dim, mixer_depth, mixer_width, released = _ROWS[name]
    parts = _released_parts(head_dim) if released else {"ffn_width": WidthConfig("constant", 4.0, 4.0, 32)}
    return DiTConfig(
        in_channels=4,
        input_size=32,
        patch_size=2,
        width=width,
        depth=depth,
        head_dim=head_dim,
        caption_channels=1024,
        mixer=MixerConfig(depth=mixer_depth, width=mixer_width),
        masking=MaskingConfig("deferred", 0.75),
        **parts,
    )


def _released_parts(head_dim: int) -> dict[str, Any]:
    return {
        "attn_width": WidthConfig("layerwise", 0.5, 1.0, 2 * head_dim),
        "ffn_width": WidthConfig("layerwise", 0.5, 4.0, 256),
        "experts": ExpertsConfig(num=8, capacity=2.0, every_n=2),
    }
