"""Define the feed-forwards.

They take the final hidden width; `width_schedules.hidden_width` does all rounding.

B batch, L tokens, D width, F hidden width.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from microdit.common.registry import Registry
from microdit.model.cost.flops import linear_flops


class FeedForward(nn.Module):
    """Map (B, L, D) -> (B, L, D); base class of feed-forwards.

    Feed-forwards are built as `FeedForward(width, hidden, bias)`.

    `matrices` counts its weight matrices of size width x hidden, which gives the hidden width at equal cost. Its last
    linear is its output, which initialization scales down with depth; `depth_scaled` names further parameters that are
    scaled alike.
    """

    matrices: ClassVar[int] = 2
    depth_scaled: ClassVar[tuple[str, ...]] = ()

    def flops(self, tokens: int) -> int:
        """Return the FLOPs for `tokens` tokens of one image.

        Override it if not all are in linears over every token.
        """
        return linear_flops(self, tokens)


class SwiGLU(FeedForward):
    """w3(silu(w1 x) * w2 x), arXiv 2002.05202 section 2."""

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
    """w2(gelu(w1 x)), the feed-forward of ViT and DiT."""

    matrices = 2

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.w2(F.gelu(self.w1(x), approximate="tanh"))


FEED_FORWARDS: Registry[type[FeedForward]] = Registry("model.ffn.type", {"swiglu": SwiGLU, "gelu": GELU})
register_feed_forward = FEED_FORWARDS.register
