"""How a network deals with dropped patches: the role, and the paper's own three methods.

B batch, T patches, K kept patches, V values of a patch, D width, S text tokens, C latent channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from microdit.config_io import Settings
from microdit.errors import ConfigError
from microdit.limits import check_limits
from microdit.model.captions import Captions
from microdit.model.mask_plan import MaskPlan, kept_patches, random_plan

if TYPE_CHECKING:
    from microdit.model.config import DiTConfig


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

    method: str = "deferred"  # a name of microdit.model.methods.MASKINGS | dotted path of a Masking class
    ratio: float = 0.75  # share of patches dropped
    block_size: int = 1  # patches are dropped in contiguous blocks of block_size x block_size
    decoder: DecoderConfig = DecoderConfig()  # maskdit
    reconstruction: float = 0.1  # maskdit: weight of the reconstruction term
    route: RouteConfig = RouteConfig()  # routing, sprint
    options: Settings = field(default_factory=Settings)  # whatever a class of yours asks for

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
class Denoised:
    """What a method's loss may look at."""

    error: Tensor  # (B, T), weighted squared error of each patch
    noisy: Tensor  # (B, C, H, W), what was to be denoised
    output: Tensor  # (B, C, H, W), D(noisy; sigma)


class Masking(nn.Module):
    """The role: drops patches before the backbone, fills their place with zeros after the head; the loss skips them.

    A method with parts of its own (say a decoder) makes them in its constructor, `DiTConfig` in hand. One that shows
    its blocks other patches overrides `backbone` and, for the count of FLOPs, `seen_by`.
    """

    uses_mixer = False
    drops_paths = False  # whether it can do without its middle blocks, as path-drop guidance asks

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        """Raises ConfigError where the method can't be had with the rest of `config`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config.masking
        self.side = config.side
        self.head_width = config.width  # of the tokens that the head gets

    @property
    def kept(self) -> int:
        """K, the patches that a plan keeps."""
        return kept_patches(self.side, self.config.ratio, self.config.block_size)

    def entering(self, masked: bool) -> int:
        """Tokens that enter the backbone."""
        return self.kept if masked else self.side**2

    def leaving(self, masked: bool) -> int:
        """Tokens that the head gets."""
        return self.entering(masked)

    def plan(self, batch: int, generator: torch.Generator) -> MaskPlan | None:
        """A fresh plan, None where nothing is dropped."""
        if self.config.ratio == 0:
            return None
        return random_plan(batch, self.side, self.config.ratio, self.config.block_size, generator)

    def unmasked_plan(self, batch: int, generator: torch.Generator) -> MaskPlan | None:
        """What a training step on all patches draws; None but for methods that vary more than the patches."""
        return None

    def drop(self, x: Tensor, plan: MaskPlan | None) -> Tensor:
        """Before the backbone: (B, T, D) -> (B, K, D)."""
        return keep(x, plan)

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: MaskPlan | None) -> Tensor:
        """From dropped tokens (B, K, D) to what the head gets, under the condition (B, D) and the caption (B, S, D)."""
        for block in blocks:
            x = block(x, c, y)
        return x

    def restore(self, out: Tensor, plan: MaskPlan | None) -> Tensor:
        """After the head: (B, K, V) -> (B, T, V), zeros where patches were dropped."""
        if plan is None:
            return out
        batch, kept, values = out.shape
        return spread(out, out.new_zeros(batch, plan.mask.shape[1] - kept, values), plan)

    def loss(self, seen: Denoised, plan: MaskPlan | None) -> Tensor:
        """Loss of each image (B,): the mean error over kept patches."""
        if plan is None:
            return seen.error.mean(1)
        visible = 1 - plan.mask
        return (seen.error * visible).sum(1) / visible.sum(1)

    def seen_by(self, index: int, masked: bool) -> int:
        """Tokens that backbone block `index` (from 0) sees."""
        return self.entering(masked)

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        """FLOPs of the method's own parts on one image."""
        return 0


def keep(x: Tensor, plan: MaskPlan | None) -> Tensor:
    """The kept ones of all tokens: (B, T, D) -> (B, K, D)."""
    return x if plan is None else plan.keep(x)


def spread(kept: Tensor, dropped: Tensor, plan: MaskPlan) -> Tensor:
    """Kept (B, K, D) and dropped tokens (B, T - K, D, ascending) each in its place: (B, T, D)."""
    both = torch.cat([kept, dropped], dim=1)
    return both.gather(1, plan.ids_restore.unsqueeze(-1).expand(-1, -1, both.shape[-1]))


class NoMasking(Masking):
    """All patches, no mixer."""


class NaiveMasking(Masking):
    """Patches are dropped as they come (MaskDiT's and MAE's way): the backbone never learns of the others."""


class DeferredMasking(Masking):
    """Patches are dropped after the patch-mixer, so that kept ones know of all (arXiv 2407.15811 section 3)."""

    uses_mixer = True
