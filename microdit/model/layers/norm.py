"""Normalize tokens without widening 16-bit ones.

L tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.LayerNorm):
    """Apply LayerNorm without bias.

    Autocast runs LayerNorm in float32. If `keeps_dtype` is set, a 16-bit input gives a 16-bit output instead, and the
    backward pass keeps half as many bytes. Mean and variance are computed in float32 in both cases.
    """

    keeps_dtype = False  # set by `DiT.save_memory`

    def __init__(self, width: int, eps: float, weight: bool = True) -> None:
        super().__init__(width, eps=eps, elementwise_affine=weight, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., L, D) -> (..., L, D)
        if not self.keeps_dtype or x.dtype == torch.float32:
            return super().forward(x)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, None, self.eps)
