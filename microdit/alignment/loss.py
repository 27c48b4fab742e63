"""Compute the alignment term of the loss with a trained projector.

B batch, T patches, K kept patches, D model width, P projector width, E features of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.patch_encoders import build_encoder
from microdit.model import DiT, DiTConfig, PatchMask
from microdit.model.cost.flops import linear_flops
from microdit.model.init import initialize_module


class NoAlignment(nn.Module):
    """Train with the denoising loss alone."""

    features = 0  # E

    def attach(self, net: DiT) -> None:
        """Do nothing."""

    def forward(self, loss: Tensor, target: Tensor, plan: PatchMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss unchanged, and no values to log.

        Args:
            loss: the denoising loss, a scalar.
            target: unused.
            plan: unused.

        Returns:
            `loss` and {}.
        """
        return loss, {}

    def flops(self, tokens: int) -> int:
        """Return 0.

        Args:
            tokens: unused.
        """
        return 0


class PatchAlignment(nn.Module):
    """Align projected tokens of one block with a frozen network's features.

    This is REPA (arXiv 2410.06940, section 3.3). The projector (three linear layers with SiLU between them) is trained
    with the network but is not a part of it: sampling doesn't need it, so neither the average nor model.safetensors
    includes it.

    Args:
        block: the aligned block, counted from 1.
        width: D.
        hidden: P.
        features: E.
        weight: lambda, at least 0.
    """

    def __init__(self, block: int, width: int, hidden: int, features: int, weight: float) -> None:
        super().__init__()
        self.block = block  # from 1
        self.features = features
        self.weight = weight
        self.projector = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features)
        )
        self._tokens: Tensor | None = None  # (B, K, D), between the network's forward pass and this module's

    def attach(self, net: DiT) -> None:
        """Record the block's output in every forward pass of `net` that has gradients."""
        net.blocks[self.block - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        if torch.is_grad_enabled():
            self._tokens = tokens

    def forward(self, loss: Tensor, target: Tensor, plan: PatchMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss of equation 8, and the cosine to log.

        Args:
            loss: the denoising loss of the network's last forward pass, a scalar.
            target: patch features (B, T, E).
            plan: the patches kept in that pass, None if all; dropped patches are omitted.

        Returns:
            `loss` - weight x the mean cosine over the patches that the block processed, and that mean cosine, detached,
            in [-1, 1].
        """
        assert self._tokens is not None, "attach the network, then pass forward with gradients"
        projected, self._tokens = self.projector(self._tokens), None  # (B, K, E)
        if plan is not None and projected.shape[1] < target.shape[1]:  # some methods show this block all patches
            target = plan.keep(target)
        cosine = F.cosine_similarity(projected.float(), target.float(), dim=-1).mean()
        return loss - self.weight * cosine, {"train/alignment": cosine.detach()}

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of the projector's forward pass for one image.

        Args:
            tokens: patches kept.
        """
        return linear_flops(self.projector, tokens)


Alignment = NoAlignment | PatchAlignment


def build_alignment(config: AlignmentConfig, model: DiTConfig, seed: int | None) -> Alignment:
    """Build the configured alignment term.

    Args:
        config: encoder, block and weight.
        model: the network to align.
        seed: of the projector's initial weights; None keeps torch's own initialization.

    Returns:
        A module that returns the loss to minimize.

    Raises:
        ConfigError: if the block is out of range, or the encoder's weights are missing.
    """
    features = build_encoder(config, model.side).width
    if not features:
        return NoAlignment()
    hidden = model.width if config.hidden is None else config.hidden
    alignment = PatchAlignment(config.block_of(model.depth), model.width, hidden, features, config.weight)
    if seed is not None:
        initialize_module(alignment, seed, "alignment")
    return alignment
