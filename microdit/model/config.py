"""The architecture's settings, every part of it reachable from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from microdit.errors import ConfigError
from microdit.limits import check_limits
from microdit.model.feed_forward import FEED_FORWARDS, FeedForwardConfig
from microdit.model.mask_plan import kept_patches
from microdit.model.masking import MaskingConfig
from microdit.model.methods import MASKINGS
from microdit.model.mixer import MixerConfig
from microdit.model.moe import ExpertsConfig
from microdit.model.widths import WidthConfig
from microdit.roles import check_name


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
    attn_width: WidthConfig = field(default_factory=WidthConfig)
    ffn_width: WidthConfig = field(default_factory=lambda: WidthConfig(start=4.0, end=4.0))
    ffn: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    mixer: MixerConfig = field(default_factory=MixerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    def __post_init__(self) -> None:
        check_limits(
            "model",
            self,
            in_channels=1 << 16,
            input_size=1 << 16,
            patch_size=1 << 10,
            width=1 << 17,
            depth=4096,
            head_dim=1 << 14,
            caption_channels=1 << 17,
            pos_interp_scale=1e6,
            norm_eps=1e3,
            caption_ffn_ratio=1024,
        )
        for key in ("in_channels", "input_size", "patch_size", "width", "depth", "head_dim", "caption_channels"):
            _require_above("model", self, key, 1, "at least 1")
        for key in ("pos_interp_scale", "norm_eps", "caption_ffn_ratio"):
            _require_above("model", self, key, math.ulp(0.0), "above 0")
        _require_multiple("model.input_size", self.input_size, self.patch_size, "model.patch_size")
        _require_multiple(
            "model.width", self.width, math.lcm(self.head_dim, 4), "whole heads, and sines and cosines for two axes"
        )
        _require_multiple("model.mixer.width", self.mixer_width, self.mixer_head_dim, "the mixer's head_dim")
        self.attn_width.check("model.attn_width")
        self.ffn_width.check("model.ffn_width")
        self._check_heads()
        check_name(self.ffn.type, FEED_FORWARDS, "model.ffn.type")
        check_name(self.masking.method, MASKINGS, "model.masking.method")
        if self.masking.method in MASKINGS:
            MASKINGS[self.masking.method].check(self)
            self._check_path_drop()
        kept_patches(self.side, self.masking.ratio, self.masking.block_size)

    def _check_path_drop(self) -> None:
        able = [name for name, method in MASKINGS.items() if method.drops_paths]
        if self.masking.route.path_drop and self.masking.method not in able:
            raise ConfigError(
                f"'model.masking.route.path_drop' is {self.masking.route.path_drop}, but 'model.masking.method' "
                f"{self.masking.method} has no path to drop; set it to 0, or the method to {' or '.join(able)}"
            )

    def _check_heads(self) -> None:
        multiple_of = self.attn_width.multiple_of
        if multiple_of is not None:
            # Every width that this granularity can give must be a whole number of heads.
            heads = self.head_dim if self.mixer.attn_ratio == 1 else math.lcm(self.head_dim, self.mixer_head_dim)
            _require_multiple("model.attn_width.multiple_of", multiple_of, heads, "model.head_dim")

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
        return self.width if self.mixer.width is None else self.mixer.width

    @property
    def mixer_head_dim(self) -> int:
        return self.head_dim if self.mixer.head_dim is None else self.mixer.head_dim


def _require_above(path: str, config: object, key: str, least: float, words: str) -> None:
    value = getattr(config, key)
    if not value >= least:
        raise ConfigError(f"'{path}.{key}' is {value}; it must be {words}")


def _require_multiple(key: str, value: int, of: int, why: str) -> None:
    if value % of:
        near = max(round(value / of), 1) * of
        raise ConfigError(f"'{key}' is {value}; it must be a multiple of {of} ({why}), the nearest is {near}")
