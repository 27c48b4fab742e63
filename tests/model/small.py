"""Provide random weights that use every part of a small network, and inputs for a latent of 4 x 8 x 8."""

from __future__ import annotations

import torch

from microdit.common.rng import generator
from microdit.model import DiT


def randomize(net: DiT) -> DiT:
    """Replace all weights, including initial zeros, with random ones that depend on the name."""
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(0, name))
        parameter.data = 1 + 0.1 * noise if "norm" in name else 0.1 * noise
    return net


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x (B, 4, 8, 8), t (B,), y (B, 5, 12)."""
    draw = generator(0, "inputs")
    return (
        torch.randn(batch, 4, 8, 8, generator=draw),
        torch.randn(batch, generator=draw),
        torch.randn(batch, 5, 12, generator=draw),
    )
