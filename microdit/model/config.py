"""The architecture's settings, every part of it reachable from YAML."""

from __future__ import annotations

from dataclasses import dataclass

from microdit.errors import ConfigError
from microdit.model.feed_forward import FeedForwardConfig
from microdit.model.masking import MaskingConfig, kept_patches
from microdit.model.mixer import MixerConfig
from microdit.model.moe import ExpertsConfig
from microdit.model.widths import WidthConfig


@dataclass(frozen=True)
class DiTConfig:
    """A diffusion transformer over latents, conditioned on caption tokens."""

    in_channels: int = 4
    input_size: int = 16  # side of the latent
    patch_size: int = 2
    width: int = 512
    depth: int = 16
    head_dim: int = 32
    caption_channels: int = 128
    pos_interp_scale: float = 1.0
    norm_eps: float = 1e-6
    bias: bool = False  # biases in the blocks' linears
    qk_norm: bool = True
    caption_ffn_ratio: float = 4.0
    attn_width: WidthConfig = WidthConfig()
    ffn_width: WidthConfig = WidthConfig(start=4.0, end=4.0)
    ffn: FeedForwardConfig = FeedForwardConfig()
    experts: ExpertsConfig = ExpertsConfig()
    mixer: MixerConfig = MixerConfig()
    masking: MaskingConfig = MaskingConfig()

    def __post_init__(self) -> None:
        for key in ("in_channels", "input_size", "patch_size", "width", "depth", "head_dim", "caption_channels"):
            if getattr(self, key) < 1:
                raise ConfigError(f"'model.{key}' is {getattr(self, key)}; it must be at least 1")
        if self.input_size % self.patch_size:
            raise ConfigError(
                f"'model.input_size' ({self.input_size}) must be a multiple of {self.patch_size} (patch_size)"
            )
        _require_multiple("model.width", self.width, self.head_dim, "model.head_dim")
        _require_multiple("model.width", self.width, 4, "4, for sin-cos positions")
        _require_multiple("model.mixer.width", self.mixer_width, self.mixer_head_dim, "the mixer's head_dim")
        if self.pos_interp_scale <= 0:
            raise ConfigError(f"'model.pos_interp_scale' is {self.pos_interp_scale}; it must be above 0")
        kept_patches(self.side, self.masking.ratio, self.masking.block_size)

    @property
    def side(self) -> int:
        """G, patches a side."""
        return self.input_size // self.patch_size

    @property
    def patches(self) -> int:
        """T, patches of an image."""
        return self.side**2

    @property
    def mixer_width(self) -> int:
        return self.mixer.width or self.width

    @property
    def mixer_head_dim(self) -> int:
        return self.mixer.head_dim or self.head_dim


def _require_multiple(key: str, value: int, of: int, what: str) -> None:
    if value % of:
        below, above = value // of * of, (value // of + 1) * of
        near = below if below and value - below <= above - value else above
        raise ConfigError(f"'{key}' is {value}, no multiple of {of} ({what}); the nearest is {near}")
