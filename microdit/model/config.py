"""The architecture's settings, every part of it reachable from YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from microdit.common.errors import ConfigError
from microdit.common.limits import check_limits
from microdit.common.parsing import FrozenOptions
from microdit.model.masking.patch_mask import kept_patches
from microdit.model.width_schedules import WidthConfig


@dataclass(frozen=True)
class FeedForwardConfig:
    """Which feed-forward the dense blocks use; the caption block always has a SwiGLU."""

    type: str = "swiglu"  # swiglu | gelu | dotted path of a FeedForward class


@dataclass(frozen=True)
class ExpertsConfig:
    """Which blocks have experts, and how many."""

    num: int = 8
    capacity: float = 2.0  # experts that process a token, on average
    every_n: int = 0  # block i (from 0) has experts where n divides i + 1, except the backbone's last; 0: all dense
    ffn_scale: float = 1.0  # hidden width of one expert, as a share of the dense feed-forward's

    def __post_init__(self) -> None:
        check_limits("model.experts", self, num=4096, ffn_scale=1024)
        if self.num < 1:
            raise ConfigError(f"'model.experts.num' is {self.num}; it must be at least 1")
        if not 0 < self.capacity <= self.num:
            raise ConfigError(
                f"'model.experts.capacity' is {self.capacity}; it must lie in (0, {self.num}], the number of experts"
            )
        if not self.ffn_scale > 0:
            raise ConfigError(f"'model.experts.ffn_scale' is {self.ffn_scale}; it must be above 0")
        if self.every_n < 0:
            raise ConfigError(f"'model.experts.every_n' is {self.every_n}; it must be at least 0 (0: dense)")

    def in_backbone(self, index: int, depth: int) -> bool:
        """Whether backbone block `index` of `depth` has experts."""
        return self.every_n > 0 and (index + 1) % self.every_n == 0 and index != depth - 1

    def in_mixer(self, index: int) -> bool:
        """Whether mixer block `index` has experts: as in the backbone, but never the first, and the last too."""
        return self.every_n > 0 and index > 0 and (index + 1) % self.every_n == 0


@dataclass(frozen=True)
class MixerConfig:
    """The patch-mixer of deferred masking; methods without a mixer ignore it."""

    depth: int = 4
    width: int | None = None  # null: the model's
    head_dim: int | None = None  # null: the model's
    attn_ratio: float = 1.0
    ffn_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_limits("model.mixer", self, depth=4096, width=1 << 17, head_dim=1 << 14, attn_ratio=1024, ffn_ratio=1024)
        if self.depth < 0:
            raise ConfigError(f"'model.mixer.depth' is {self.depth}; it must be at least 0")
        for key in ("attn_ratio", "ffn_ratio"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"'model.mixer.{key}' is {getattr(self, key)}; it must be above 0")
        for key in ("width", "head_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"'model.mixer.{key}' is {getattr(self, key)}; it must be at least 1, or null")


@dataclass(frozen=True)
class DecoderConfig:
    """MaskDiT's decoder; the original has 8 blocks, 512 wide."""

    depth: int = 2
    width: int | None = None  # null: the model's
    head_dim: int | None = None  # null: the model's
    ffn_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_limits("model.masking.decoder", self, depth=4096, width=1 << 17, head_dim=1 << 14, ffn_ratio=1024)
        if self.depth < 0:
            raise ConfigError(f"'model.masking.decoder.depth' is {self.depth}; it must be at least 0")
        if not self.ffn_ratio > 0:
            raise ConfigError(f"'model.masking.decoder.ffn_ratio' is {self.ffn_ratio}; it must be above 0")
        for key in ("width", "head_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(
                    f"'model.masking.decoder.{key}' is {getattr(self, key)}; it must be at least 1, or null"
                )


@dataclass(frozen=True)
class RouteConfig:
    """Blocks at the beginning and at the end of the backbone that see all patches; those between see the kept ones."""

    before: int = 2
    after: int = 2
    path_drop: float = 0.0  # sprint: share of images that go around the blocks between, in training

    def __post_init__(self) -> None:
        if not 0 <= self.path_drop < 1:
            raise ConfigError(f"'model.masking.route.path_drop' is {self.path_drop}; it must lie in [0, 1)")
        for key in ("before", "after"):
            if getattr(self, key) < 0:
                raise ConfigError(f"'model.masking.route.{key}' is {getattr(self, key)}; it must be at least 0")


@dataclass(frozen=True)
class MaskingConfig:
    """How patches are dropped in training; samplers always see all of them."""

    method: str = "deferred"  # a name of microdit.model.masking.registry.MASKINGS | dotted path of a Masking class
    ratio: float = 0.75  # share of patches dropped
    block_size: int = 1  # patches are dropped in contiguous blocks of block_size x block_size
    decoder: DecoderConfig = DecoderConfig()  # maskdit
    reconstruction: float = 0.1  # maskdit: weight of the reconstruction term
    route: RouteConfig = RouteConfig()  # routing, sprint
    options: FrozenOptions = field(default_factory=FrozenOptions)  # whatever a class of yours asks for

    def __post_init__(self) -> None:
        check_limits("model.masking", self, block_size=1 << 16, reconstruction=1e12)
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"'model.masking.ratio' is {self.ratio}; it must lie in [0, 1)")
        if self.block_size < 1:
            raise ConfigError(f"'model.masking.block_size' is {self.block_size}; it must be at least 1")
        if self.reconstruction < 0:
            raise ConfigError(f"'model.masking.reconstruction' is {self.reconstruction}; it must be at least 0")
        if self.method == "none" and self.ratio != 0:
            raise ConfigError(
                f"'model.masking.method' is none, but 'model.masking.ratio' is {self.ratio}; set the ratio to 0, or "
                "the method to naive or deferred"
            )


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
        kept_patches(self.side, self.masking.ratio, self.masking.block_size)

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
