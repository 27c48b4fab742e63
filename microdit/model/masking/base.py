"""Define the masking role and the paper's own three methods.

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
    """Inputs of a method's loss."""

    error: Tensor  # (B, T), weighted squared error of each patch
    noisy: Tensor  # (B, C, H, W), what was to be denoised
    output: Tensor  # (B, C, H, W), D(noisy; sigma)


class Masking(nn.Module):
    """Drop patches before the backbone; base class of all masking methods.

    Their outputs after the head are zeros, and the loss excludes them.

    A method with parts of its own (a decoder, say) builds them in its constructor. A method whose blocks see different
    patches overrides `backbone` and, for the count of FLOPs, `seen_by`. Free settings are in `self.config.options`.

    Args:
        config: the architecture.
    """

    uses_mixer = False  # whether the patch-mixer runs before `drop`
    drops_paths = False  # whether it works without its middle blocks, as path-drop guidance requires

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        """Check the settings that the method depends on.

        Raises:
            ConfigError: if the method does not work with the rest of `config`.
        """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config.masking
        self.side = config.side
        self.head_width = config.width  # width of the tokens that the head receives

    @property
    def kept(self) -> int:
        """Return K, the number of patches that a plan keeps."""
        return kept_patches(self.side, self.config.ratio, self.config.block_size)

    def entering(self, masked: bool) -> int:
        """Return the number of tokens that enter the backbone."""
        return self.kept if masked else self.side**2

    def leaving(self, masked: bool) -> int:
        """Return the number of tokens that the head receives."""
        return self.entering(masked)

    def plan(self, batch: int, generator: torch.Generator) -> PatchMask | None:
        """Return a random plan for `batch` images, None if nothing is dropped."""
        if self.config.ratio == 0:
            return None
        return random_mask(batch, self.side, self.config.ratio, self.config.block_size, generator)

    def unmasked_plan(self, batch: int, generator: torch.Generator) -> PatchMask | None:
        """Return the plan of a training step on all patches, or None.

        It is None unless the method varies more than the patches.
        """
        return None

    def drop(self, x: Tensor, plan: PatchMask | None) -> Tensor:
        """Return the tokens that enter the backbone: (B, T, D) -> (B, K, D)."""
        return gather_kept(x, plan)

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: PatchMask | None) -> Tensor:
        """Run the blocks.

        Args:
            blocks: the backbone.
            x: kept tokens (B, K, D).
            c: noise level and pooled caption (B, D).
            y: caption tokens (B, S, D).
            plan: the kept patches.

        Returns:
            Tokens for the head (B, K, D).
        """
        for block in blocks:
            x = block(x, c, y)
        return x

    def restore(self, out: Tensor, plan: PatchMask | None) -> Tensor:
        """Return values of all patches: (B, K, V) -> (B, T, V), zeros in place of dropped ones."""
        if plan is None:
            return out
        batch, kept, values = out.shape
        return scatter_tokens(out, out.new_zeros(batch, plan.mask.shape[1] - kept, values), plan)

    def loss(self, seen: MaskingLossInputs, plan: PatchMask | None) -> Tensor:
        """Return the loss of each image (B,): the mean error over kept patches."""
        if plan is None:
            return seen.error.mean(1)
        visible = 1 - plan.mask
        return (seen.error * visible).sum(1) / visible.sum(1)

    def seen_by(self, index: int, masked: bool) -> int:
        """Return the number of tokens that backbone block `index` (from 0) sees."""
        return self.entering(masked)

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        """Return the FLOPs of the method's own parts for one image."""
        return 0


def gather_kept(x: Tensor, plan: PatchMask | None) -> Tensor:
    """Return the kept tokens: (B, T, D) -> (B, K, D)."""
    return x if plan is None else plan.keep(x)


def scatter_tokens(kept: Tensor, dropped: Tensor, plan: PatchMask) -> Tensor:
    """Return kept and dropped tokens in the order of patches, (B, T, D).

    Kept ones are (B, K, D). Dropped ones are (B, T - K, D), ascending.
    """
    both = torch.cat([kept, dropped], dim=1)
    return both.gather(1, plan.ids_restore.unsqueeze(-1).expand(-1, -1, both.shape[-1]))


class NoMasking(Masking):
    """Keep all patches, without a mixer."""


class NaiveMasking(Masking):
    """Drop patches directly, as MaskDiT and MAE do.

    The backbone has no information about them.
    """


class DeferredMasking(Masking):
    """Drop patches after the patch-mixer.

    The mixer passes information from all patches to the kept ones.

    arXiv 2407.15811, section 3.
    """

    uses_mixer = True
