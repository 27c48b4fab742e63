"""Define the architecture's settings, all of them configurable in YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import FrozenOptions
from microdit.model.masking.kept_patches import kept_patches
from microdit.model.width_schedules import WidthConfig


@dataclass(frozen=True)
class FeedForwardConfig:
    """Select the dense blocks' feed-forward; the caption block always has a SwiGLU."""

    type: str = "swiglu"  # swiglu | gelu | dotted path of a FeedForward class


@dataclass(frozen=True)
class ExpertsConfig:
    """Configure which blocks have experts, and how many."""

    num: Annotated[int, Range(1, 4096)] = 8
    capacity: float = 2.0  # experts that process a token, on average
    # Block i (from 0) has experts if n divides i + 1, except the backbone's last; 0: all dense.
    every_n: Annotated[int, Range(0)] = 0
    # Hidden width of one expert, as a share of the dense feed-forward's
    ffn_scale: Annotated[float, Range(above=0, most=1024)] = 1.0

    def __post_init__(self) -> None:
        check_settings("model.experts", self)
        if not 0 < self.capacity <= self.num:
            raise ConfigError(
                f"'model.experts.capacity' is {self.capacity}; it must lie in (0, {self.num}], the number of experts"
            )

    def in_backbone(self, index: int, depth: int) -> bool:
        """Return whether a backbone block has experts.

        Args:
            index: of the block, from 0.
            depth: number of blocks.
        """
        return self.every_n > 0 and (index + 1) % self.every_n == 0 and index != depth - 1

    def in_mixer(self, index: int) -> bool:
        """Return whether mixer block `index` (from 0) has experts.

        The rule is the backbone's, except that the first block never has experts and the last may.

        Args:
            index: of the block, from 0.
        """
        return self.every_n > 0 and index > 0 and (index + 1) % self.every_n == 0


@dataclass(frozen=True)
class MixerConfig:
    """Configure the patch-mixer of deferred masking; other methods ignore it."""

    depth: Annotated[int, Range(0, 4096)] = 4
    width: Annotated[int | None, Range(1, 1 << 17)] = None  # null: the model's
    head_dim: Annotated[int | None, Range(1, 1 << 14)] = None  # null: the model's
    attn_ratio: Annotated[float, Range(above=0, most=1024)] = 1.0
    ffn_ratio: Annotated[float, Range(above=0, most=1024)] = 4.0
    type: str = "transformer"  # transformer | dotted path of a Mixer class
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for a class of the user's

    def __post_init__(self) -> None:
        check_settings("model.mixer", self)


@dataclass(frozen=True)
class DecoderConfig:
    """Configure MaskDiT's decoder; the original has 8 blocks, 512 wide."""

    depth: Annotated[int, Range(0, 4096)] = 2
    width: Annotated[int | None, Range(1, 1 << 17)] = None  # null: the model's
    head_dim: Annotated[int | None, Range(1, 1 << 14)] = None  # null: the model's
    ffn_ratio: Annotated[float, Range(above=0, most=1024)] = 4.0

    def __post_init__(self) -> None:
        check_settings("model.masking.decoder", self)


@dataclass(frozen=True)
class RouteConfig:
    """Set how many of the first and last backbone blocks see all patches.

    The blocks between them see the kept patches only.
    """

    before: Annotated[int, Range(0)] = 2
    after: Annotated[int, Range(0)] = 2
    # Sprint: share of images that skip the blocks between, in training.
    path_drop: Annotated[float, Range(0, below=1)] = 0.0

    def __post_init__(self) -> None:
        check_settings("model.masking.route", self)


@dataclass(frozen=True)
class MaskingConfig:
    """Configure how patches are dropped in training; samplers use all of them."""

    method: str = "deferred"  # registered name (microdit.model.masking.registry) or dotted path of a Masking class
    ratio: Annotated[float, Range(0, below=1)] = 0.75  # share of patches dropped
    block_size: Annotated[int, Range(1, 1 << 16)] = 1  # side of the square blocks of patches that are dropped whole
    decoder: DecoderConfig = DecoderConfig()  # maskdit
    reconstruction: Annotated[float, Range(0, 1e12)] = 0.1  # maskdit: weight of the reconstruction term
    route: RouteConfig = RouteConfig()  # routing, sprint
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for a class of the user's

    def __post_init__(self) -> None:
        check_settings("model.masking", self)
        if self.method == "none" and self.ratio != 0:
            raise ConfigError(
                f"'model.masking.method' is none, but 'model.masking.ratio' is {self.ratio}; set the ratio to 0, or "
                "the method to naive or deferred"
            )


@dataclass(frozen=True)
class DiTConfig:
    """Configure a diffusion transformer over latents, conditioned on caption tokens."""

    in_channels: Annotated[int, Range(1, 1 << 16)] = 4
    input_size: Annotated[int, Range(1, 1 << 16)] = 16  # side of the latent
    patch_size: Annotated[int, Range(1, 1 << 10)] = 2
    width: Annotated[int, Range(1, 1 << 17)] = 512
    depth: Annotated[int, Range(1, 4096)] = 16
    head_dim: Annotated[int, Range(1, 1 << 14)] = 32
    caption_channels: Annotated[int, Range(1, 1 << 17)] = 128
    pos_interp_scale: Annotated[float, Range(above=0, most=1e6)] = 1.0
    norm_eps: Annotated[float, Range(above=0, most=1e3)] = 1e-6
    bias: bool = False  # biases in the blocks' linears
    qk_norm: bool = True
    caption_ffn_ratio: Annotated[float, Range(above=0, most=1024)] = 4.0
    attn_width: WidthConfig = field(default_factory=WidthConfig)
    ffn_width: WidthConfig = field(default_factory=lambda: WidthConfig(start=4.0, end=4.0, multiple_of=32))
    ffn: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    mixer: MixerConfig = field(default_factory=MixerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)

    def __post_init__(self) -> None:
        check_settings("model", self)
        _require_multiple("model.input_size", self.input_size, self.patch_size, "model.patch_size")
        _require_multiple(
            "model.width", self.width, math.lcm(self.head_dim, 4), "whole heads, and sines and cosines for two axes"
        )
        _require_multiple("model.mixer.width", self.mixer_width, self.mixer_head_dim, "the mixer's head_dim")
        self.attn_width.check("model.attn_width")
        self.ffn_width.check("model.ffn_width")
        self._check_heads()
        kept_patches(self.side, self.masking.ratio, self.masking.block_size)

    def _check_heads(self) -> None:
        multiple_of = self.attn_width.multiple_of
        if multiple_of is not None:
            # Every width that this granularity can give must be a whole number of heads.
            heads = self.head_dim if self.mixer.attn_ratio == 1 else math.lcm(self.head_dim, self.mixer_head_dim)
            _require_multiple("model.attn_width.multiple_of", multiple_of, heads, "model.head_dim")

    @property
    def side(self) -> int:
        """Return G, the patches per side."""
        return self.input_size // self.patch_size

    @property
    def patches(self) -> int:
        """Return T, the patches of an image."""
        return self.side**2

    @property
    def mixer_width(self) -> int:
        """Return M, the width of the patch-mixer's tokens."""
        return self.width if self.mixer.width is None else self.mixer.width

    @property
    def mixer_head_dim(self) -> int:
        """Return the width of the patch-mixer's heads."""
        return self.head_dim if self.mixer.head_dim is None else self.mixer.head_dim


def _require_multiple(key: str, value: int, of: int, why: str) -> None:
    if value % of:
        near = max(round(value / of), 1) * of
        raise ConfigError(f"'{key}' is {value}; it must be a multiple of {of} ({why}), the nearest is {near}")
