"""Define the feed-forwards.

They receive the final hidden width; `width_schedules.hidden_width` does all rounding.

B batch, L tokens, D width, F hidden width.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from microdit.common.registry import Registry
from microdit.model.cost.flops import linear_flops
from microdit.model.layers import registry


class FeedForward(nn.Module):
    """Map (B, L, D) to (B, L, D); base class of feed-forwards.

    They are built as `FeedForward(width, hidden, bias)`. `matrices` is the number of weight matrices of size width x
    hidden; it determines the hidden width at equal cost. The last linear is the output, which initialization scales
    down with depth; `depth_scaled` names further parameters to scale alike.
    """

    matrices: ClassVar[int] = 2
    depth_scaled: ClassVar[tuple[str, ...]] = ()

    def flops(self, tokens: int) -> int:
        """Return the FLOPs for one image.

        Override it if some matrix products are not linears over every token.

        Args:
            tokens: L.
        """
        return linear_flops(self, tokens)


class SwiGLU(FeedForward):
    """Compute w3(silu(w1 x) * w2 x), arXiv 2002.05202 section 2."""

    matrices = 3
    depth_scaled = ("w2.weight",)

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(width, hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class GELU(FeedForward):
    """Compute w2(gelu(w1 x)), the feed-forward of ViT and DiT."""

    matrices = 2

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.w2(F.gelu(self.w1(x), approximate="tanh"))


FEED_FORWARDS: Registry[type[FeedForward]] = registry.FEED_FORWARDS
register_feed_forward = FEED_FORWARDS.register
