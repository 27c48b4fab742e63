"""How a network deals with dropped patches: the role, and the paper's own three methods.

B batch, T patches, K kept patches, V values of a patch, D width, S text tokens, C latent channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microdit.model.conditioning import Captions
from microdit.model.config import DiTConfig
from microdit.model.masking.patch_mask import PatchMask, kept_patches, random_mask


@dataclass(frozen=True)
class MaskingLossInputs:
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

    def plan(self, batch: int, generator: torch.Generator) -> PatchMask | None:
        """A fresh plan, None where nothing is dropped."""
        if self.config.ratio == 0:
            return None
        return random_mask(batch, self.side, self.config.ratio, self.config.block_size, generator)

    def unmasked_plan(self, batch: int, generator: torch.Generator) -> PatchMask | None:
        """What a training step on all patches draws; None but for methods that vary more than the patches."""
        return None

    def drop(self, x: Tensor, plan: PatchMask | None) -> Tensor:
        """Before the backbone: (B, T, D) -> (B, K, D)."""
        return gather_kept(x, plan)

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: PatchMask | None) -> Tensor:
        """From dropped tokens (B, K, D) to what the head gets, under the condition (B, D) and the caption (B, S, D)."""
        for block in blocks:
            x = block(x, c, y)
        return x

    def restore(self, out: Tensor, plan: PatchMask | None) -> Tensor:
        """After the head: (B, K, V) -> (B, T, V), zeros where patches were dropped."""
        if plan is None:
            return out
        batch, kept, values = out.shape
        return scatter_tokens(out, out.new_zeros(batch, plan.mask.shape[1] - kept, values), plan)

    def loss(self, seen: MaskingLossInputs, plan: PatchMask | None) -> Tensor:
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


def gather_kept(x: Tensor, plan: PatchMask | None) -> Tensor:
    """The kept ones of all tokens: (B, T, D) -> (B, K, D)."""
    return x if plan is None else plan.keep(x)


def scatter_tokens(kept: Tensor, dropped: Tensor, plan: PatchMask) -> Tensor:
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
