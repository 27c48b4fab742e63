"""Expert-choice mixture of experts (Zhou et al., arXiv 2202.09368): each expert takes the tokens it wants most.

B batch, L tokens, D width, F hidden width, E experts, K tokens an expert takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.errors import ConfigError
from microdit.limits import check_limits
from microdit.model.counting import linear_flops
from microdit.model.feed_forward import FeedForward


@dataclass(frozen=True)
class ExpertsConfig:
    """Which blocks have experts, and how many."""

    num: int = 8
    capacity: float = 2.0  # experts that process a token, on average
    every_n: int = 0  # block i (from 0) has experts where n divides i + 1, except the backbone's last; 0: all dense
    ffn_scale: float = 1.0  # hidden width of one expert, as a share of the dense feed-forward's

    def __post_init__(self) -> None:
        check_limits("model.experts", self, num=4096, ffn_scale=1024)
        if self.num < 1:
            raise ConfigError(f"'model.experts.num' is {self.num}; it must be at least 1")
        if not 0 < self.capacity <= self.num:
            raise ConfigError(
                f"'model.experts.capacity' is {self.capacity}; it must lie in (0, {self.num}], the number of experts"
            )
        if not self.ffn_scale > 0:
            raise ConfigError(f"'model.experts.ffn_scale' is {self.ffn_scale}; it must be above 0")
        if self.every_n < 0:
            raise ConfigError(f"'model.experts.every_n' is {self.every_n}; it must be at least 0 (0: dense)")

    def in_backbone(self, index: int, depth: int) -> bool:
        """Whether backbone block `index` of `depth` has experts."""
        return self.every_n > 0 and (index + 1) % self.every_n == 0 and index != depth - 1

    def in_mixer(self, index: int) -> bool:
        """Whether mixer block `index` has experts: as in the backbone, but never the first, and the last too."""
        return self.every_n > 0 and index > 0 and (index + 1) % self.every_n == 0


class ExpertChoice(FeedForward):
    """E two-layer GELU feed-forwards over gathered tokens; a token's outputs are weighted by its gate and summed.

    A token that no expert takes passes by (the block's residual keeps it). There is no auxiliary loss: every expert is
    full by construction.
    """

    def __init__(self, width: int, hidden: int, num: int, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.gate = nn.Linear(width, num, bias=False)
        self.w1 = nn.Parameter(torch.empty(num, width, hidden))
        self.w2 = nn.Parameter(torch.empty(num, hidden, width))

    def taken(self, tokens: int) -> int:
        """K, the tokens of one image that an expert takes."""
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
