"""What tests of small networks share: weights that give every part a say, and inputs for a latent of 4 x 8 x 8."""

from __future__ import annotations

import torch

from microdit.common.rng import generator
from microdit.model import DiT


def randomise(net: DiT) -> DiT:
    """Replaces all weights, the zeros that a network starts from included, by random ones; the same for a name."""
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(0, name))
        parameter.data = 1 + 0.1 * noise if "norm" in name else 0.1 * noise
    return net


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (B, 4, 8, 8), t (B,), y (B, 5, 12)."""
    draw = generator(0, "inputs")
    return (
        torch.randn(batch, 4, 8, 8, generator=draw),
        torch.randn(batch, generator=draw),
        torch.randn(batch, 5, 12, generator=draw),
    )
