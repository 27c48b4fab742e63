"""Embed latents, noise levels and captions as tokens and conditions.

B batch, C latent channels, T patches, S text tokens, Y text width, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.model.cost.flops import linear_flops
from microdit.model.layers.norm import Norm

FREQUENCIES = 512  # sinusoids of the time embedding
MAX_PERIOD = 10_000.0


class PatchEmbed(nn.Module):
    """Cut latents into square patches and map each linearly to a token.

    The weights are a convolution's, as in released checkpoints. They are applied as a linear to unfolded patches: a
    convolution would return tokens in (B, D, T) memory order, which every LayerNorm after it would have to copy.
    """

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w) -> (B, T, D)
        p = self.patch_size
        batch, channels, rows, columns = len(x), x.shape[1], x.shape[2] // p, x.shape[3] // p
        patches = x.view(batch, channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(batch, rows * columns, -1), self.proj.weight.flatten(1), self.proj.bias)

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.proj.weight.numel()


class TimestepEmbedder(nn.Module):
    """Embed c_noise by sinusoids, cosines first, and two linears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.GELU("tanh"), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, D)
        half = FREQUENCIES // 2
        ramp = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float().unsqueeze(1) * torch.exp(-math.log(MAX_PERIOD) * ramp)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))

    def flops(self) -> int:
        return linear_flops(self, 1)


class CaptionMLP(nn.Module):
    """Apply Linear, GELU, LayerNorm and Linear.

    One instance maps caption features to the model width, another the pooled caption to the condition.
    """

    def __init__(self, width_in: int, width: int, eps: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, width)
        self.act = nn.GELU("tanh")
        self.norm = Norm(width, eps)
        self.fc2 = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:  # (..., Y) -> (..., D)
        return self.fc2(self.norm(self.act(self.fc1(y))))

    def flops(self, tokens: int) -> int:
        return linear_flops(self, tokens)


def add_positions(x: Tensor, positions: Tensor, keeps_dtype: bool) -> Tensor:
    """Add positions to tokens.

    Args:
        x: (B, T, D).
        positions: (1, T, D), float32.
        keeps_dtype: return the dtype of `x`; else float32.

    Returns:
        (B, T, D).
    """
    return x + (positions.to(x.dtype) if keeps_dtype else positions)


def sincos_positions(width: int, side: int, interp_scale: float) -> Tensor:
    """Return fixed two-dimensional sin-cos positions.

    Positions run row by row. Columns fill the first half of the width, rows the second.

    Args:
        width: D, a multiple of 4.
        side: patches per side.
        interp_scale: divides the coordinates, so that a grid twice as fine spans the range of the base grid.

    Returns:
        (1, side * side, width), float32.
    """
    # On the CPU, whatever the network's device: on the meta device, arange alone loads seconds of Python.
    coordinate = torch.arange(side, dtype=torch.float64, device="cpu") / interp_scale
    rows, columns = torch.meshgrid(coordinate, coordinate, indexing="ij")
    halves = [_sincos(width // 2, axis.flatten()) for axis in (columns, rows)]
    return torch.cat(halves, dim=1).float().unsqueeze(0).to(torch.get_default_device())


def _sincos(width: int, position: Tensor) -> Tensor:  # (T,) -> (T, width)
    omega = MAX_PERIOD ** (-torch.arange(width // 2, dtype=torch.float64, device="cpu") / (width / 2))
    angles = position.unsqueeze(1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)
