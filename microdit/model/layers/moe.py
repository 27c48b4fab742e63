"""Implement a mixture of experts with expert choice (arXiv 2202.09368).

B batch, L tokens, D width, F hidden width, E experts, K tokens per expert and image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.model.cost.flops import linear_flops
from microdit.model.layers.feed_forward import FeedForward


class ExpertChoice(FeedForward):
    """Apply E two-layer GELU feed-forwards, each to the tokens it scores highest.

    A token's outputs are weighted by its gates and summed. A token that no expert takes gives zero, so only the block's
    residual remains. No auxiliary loss is needed, since every expert is full by construction.
    """

    def __init__(self, width: int, hidden: int, num: int, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.gate = nn.Linear(width, num, bias=False)
        self.w1 = nn.Parameter(torch.empty(num, width, hidden))
        self.w2 = nn.Parameter(torch.empty(num, hidden, width))

    def taken(self, tokens: int) -> int:
        """Return K, the tokens of one image that an expert takes.

        Args:
            tokens: L.
        """
        return max(int(self.capacity * tokens / len(self.w1)), 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        batch, tokens, width = x.shape
        experts = len(self.w1)
        scores = self.gate(x).softmax(-1).transpose(1, 2)  # (B, E, L)
        weight, index = scores.topk(self.taken(tokens), dim=-1)  # (B, E, K)
        flat = index.reshape(batch, -1, 1).expand(-1, -1, width)  # (B, E K, D)
        chosen = x.gather(1, flat).view(batch, experts, -1, width).transpose(0, 1)  # (E, B, K, D)
        hidden = F.gelu(chosen.reshape(experts, -1, width) @ self.w1)  # (E, B K, F)
        out = (hidden @ self.w2).view(experts, batch, -1, width).transpose(0, 1)  # (B, E, K, D)
        out = (out * weight.unsqueeze(-1)).reshape(batch, -1, width)
        return torch.zeros_like(x).scatter_add(1, flat, out.to(x.dtype))

    def flops(self, tokens: int) -> int:
        experts, width, hidden = self.w1.shape
        return linear_flops(self.gate, tokens) + experts * self.taken(tokens) * 4 * width * hidden
