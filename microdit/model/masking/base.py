"""Define the masking role and the paper's own three methods.

B batch, T patches, K kept patches, V values of a patch, D width, S text tokens, C latent channels, H W latent size.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microdit.common.errors import ConfigError
from microdit.common.rng import RowDraws
from microdit.model.conditioning import Captions
from microdit.model.config import DiTConfig
from microdit.model.masking.kept_patches import kept_patches
from microdit.model.masking.patch_mask import PatchMask, draw_mask


@dataclass(frozen=True)
class MaskingLossInputs:
    """Hold the inputs of a method's loss."""

    error: Tensor  # (B, T), weighted squared error of each patch
    noisy: Tensor  # (B, C, H, W), what was to be denoised
    output: Tensor  # (B, C, H, W), D(noisy; sigma)


class Masking(nn.Module):
    """Drop patches before the backbone; base class of all masking methods.

    By default, the network's output at dropped patches is zero, and the loss excludes them. A method with modules of
    its own (a decoder, say) builds them in its constructor. A method whose blocks see different patches overrides
    `backbone` and, for counting FLOPs, `seen_by`. Free settings are in `self.config.options`.

    Args:
        config: the architecture.
    """

    uses_mixer = False  # whether the patch-mixer runs before `drop`
    keeps_dtype = False  # as in `DiT`, for tokens that the method makes
    drops_paths = False  # whether it works without its middle blocks, as path-drop guidance requires

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        """Check the settings that the method depends on.

        Raises:
            ConfigError: if the method does not work with the rest of `config`.
        """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("plan", "unmasked_plan"):  # former signature: (self, batch, generator)
            if len(inspect.signature(getattr(cls, name)).parameters) != 2:
                raise ConfigError(
                    f"{cls.__module__}.{cls.__qualname__}: the method must be {name}(self, draws); draws.uniform(n) "
                    "and draws.normal(n) return random numbers of shape (draws.count, n) on draws.device"
                )

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
        """Return the number of tokens that enter the backbone.

        Args:
            masked: whether patches are dropped, as in training.
        """
        return self.kept if masked else self.side**2

    def leaving(self, masked: bool) -> int:
        """Return the number of tokens that the head receives.

        Args:
            masked: whether patches are dropped, as in training.
        """
        return self.entering(masked)

    def plan(self, draws: RowDraws) -> PatchMask | None:
        """Return the random plan of a masked training step.

        Args:
            draws: source of randomness; its `count` is B, its device the plan's.

        Returns:
            The kept patches, or None if nothing is dropped.
        """
        if self.config.ratio == 0:
            return None
        return draw_mask(draws, self.side, self.config.ratio, self.config.block_size)

    def unmasked_plan(self, draws: RowDraws) -> PatchMask | None:
        """Return the plan of a training step on all patches.

        Args:
            draws: source of randomness; its `count` is B, its device the plan's.

        Returns:
            None, unless the method varies more than the patches.
        """
        return None

    def drop(self, x: Tensor, plan: PatchMask | None) -> Tensor:
        """Return the tokens that enter the backbone.

        Args:
            x: all tokens (B, T, D), or (B, T, M) from a mixer.
            plan: the kept patches; None: all.

        Returns:
            (B, K, D) or (B, K, M).
        """
        return gather_kept(x, plan)

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: PatchMask | None) -> Tensor:
        """Run the blocks.

        Args:
            blocks: the backbone.
            x: tokens that `drop` returned, at the model's width (B, K, D).
            c: noise level and pooled caption (B, D).
            y: caption tokens (B, S, D).
            plan: the kept patches; None: all.

        Returns:
            Tokens for the head (B, K, D).
        """
        for block in blocks:
            x = block(x, c, y)
        return x

    def restore(self, out: Tensor, plan: PatchMask | None) -> Tensor:
        """Return the head's output for all patches.

        Args:
            out: values of kept patches (B, K, V).
            plan: the kept patches; None: all.

        Returns:
            (B, T, V), zeros at dropped patches.
        """
        if plan is None:
            return out
        batch, kept, values = out.shape
        return scatter_tokens(out, out.new_zeros(batch, plan.mask.shape[1] - kept, values), plan)

    def loss(self, seen: MaskingLossInputs, plan: PatchMask | None) -> Tensor:
        """Return the loss of each image: the mean error over kept patches.

        Args:
            seen: errors, noisy latents and outputs.
            plan: the kept patches; None: all.

        Returns:
            (B,).
        """
        if plan is None:
            return seen.error.mean(1)
        visible = 1 - plan.mask
        return (seen.error * visible).sum(1) / visible.sum(1)

    def seen_by(self, index: int, masked: bool) -> int:
        """Return the number of tokens that a backbone block sees.

        Args:
            index: of the block, from 0.
            masked: whether patches are dropped, as in training.
        """
        return self.entering(masked)

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        """Return the FLOPs of the method's own modules for one image.

        Args:
            masked: whether patches are dropped, as in training.
            text_tokens: S.
        """
        return 0


def gather_kept(x: Tensor, plan: PatchMask | None) -> Tensor:
    """Return the kept tokens.

    Args:
        x: all tokens (B, T, D).
        plan: the kept patches; None: all.

    Returns:
        (B, K, D).
    """
    return x if plan is None else plan.keep(x)


def scatter_tokens(kept: Tensor, dropped: Tensor, plan: PatchMask) -> Tensor:
    """Return kept and dropped tokens in the order of patches.

    Args:
        kept: (B, K, D), in the plan's order.
        dropped: (B, T - K, D), by ascending patch number.
        plan: the kept patches.

    Returns:
        (B, T, D).
    """
    both = torch.cat([kept, dropped], dim=1)
    return both.gather(1, plan.ids_restore.unsqueeze(-1).expand(-1, -1, both.shape[-1]))


class NoMasking(Masking):
    """Keep all patches, without a mixer."""


class NaiveMasking(Masking):
    """Drop patches directly, as MaskDiT and MAE do.

    The backbone has no information about dropped patches.
    """


class DeferredMasking(Masking):
    """Drop patches after the patch-mixer (arXiv 2407.15811, section 3).

    The mixer passes information from all patches to the kept ones.
    """

    uses_mixer = True
