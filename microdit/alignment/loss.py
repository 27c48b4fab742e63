"""Compute the alignment term of the loss, and train its projector.

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
        """Read nothing from the network."""

    def forward(self, loss: Tensor, target: Tensor, plan: PatchMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss unchanged, and no values to log."""
        return loss, {}

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of one image's forward pass."""
        return 0


class PatchAlignment(nn.Module):
    """Align projected tokens of one block with a frozen network's features.

    This is REPA (arXiv 2410.06940, section 3.3).

    The projector (three linears with SiLU between them) is trained with the network and is no part of it: sampling
    doesn't need it, so neither the average nor model.safetensors holds it.
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

        The result is `loss` - weight x the mean cosine over the patches that the block saw.

        Args:
            loss: the denoising loss of the network's last forward pass, a scalar.
            target: (B, T, E). plan: that of the pass; dropped patches are left out.
        """
        assert self._tokens is not None, "attach the network, then pass forward with gradients"
        projected, self._tokens = self.projector(self._tokens), None  # (B, K, E)
        if plan is not None and projected.shape[1] < target.shape[1]:  # some methods show this block all patches
            target = plan.keep(target)
        cosine = F.cosine_similarity(projected.float(), target.float(), dim=-1).mean()
        return loss - self.weight * cosine, {"train/alignment": cosine.detach()}

    def flops(self, tokens: int) -> int:
        """Return the FLOPs of one image's forward pass with `tokens` patches kept."""
        return linear_flops(self.projector, tokens)


Alignment = NoAlignment | PatchAlignment


def build_alignment(config: AlignmentConfig, model: DiTConfig, seed: int | None) -> Alignment:
    """Build the alignment term that `config` names for a network of `model`.

    `seed` sets its initial weights; None leaves them as they are.
    """
    features = build_encoder(config, model.side).width
    if not features:
        return NoAlignment()
    hidden = model.width if config.hidden is None else config.hidden
    alignment = PatchAlignment(config.block_of(model.depth), model.width, hidden, features, config.weight)
    if seed is not None:
        initialize_module(alignment, seed, "alignment")
    return alignment
