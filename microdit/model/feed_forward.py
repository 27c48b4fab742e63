"""Feed-forwards. They take the final hidden width; one function does all rounding.

B batch, L tokens, D width, F hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from microdit.model.widths import round_up

DEFAULT_MULTIPLE = 8


@dataclass(frozen=True)
class FeedForwardConfig:
    """Which feed-forward the dense blocks use."""

    type: str = "swiglu"  # swiglu | gelu | dotted path of a class (width, hidden, bias)


class SwiGLU(nn.Module):
    """w3(silu(w1 x) * w2 x), arXiv 2002.05202 section 2."""

    matrices = 3

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(width, hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.w3(F.silu(self.w1(x)) * self.w2(x))

    def flops(self, tokens: int) -> int:
        return 2 * tokens * (self.w1.weight.numel() + self.w2.weight.numel() + self.w3.weight.numel())


class GELU(nn.Module):
    """w2(gelu(w1 x)), the feed-forward of ViT and DiT."""

    matrices = 2

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        return self.w2(F.gelu(self.w1(x), approximate="tanh"))

    def flops(self, tokens: int) -> int:
        return 2 * tokens * (self.w1.weight.numel() + self.w2.weight.numel())


FEED_FORWARDS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU}


def hidden_width(width: int, ratio: float, matrices: int, multiple_of: int | None) -> int:
    """Hidden width of a feed-forward with `matrices` weight matrices, at a ratio counted for two of them.

    A gated feed-forward has three matrices, so its hidden width is two thirds of `width * ratio`: at one ratio all kinds
    have equal parameters and FLOPs, within rounding up to `multiple_of`.
    """
    return round_up(width * ratio * 2 / matrices, multiple_of or DEFAULT_MULTIPLE)
