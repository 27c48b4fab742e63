"""Self- and cross-attention with normalised queries and keys.

B batch, L tokens, S text tokens, D width, A attention width, H heads, h head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from microdit.errors import ConfigError


def _norm(width: int, eps: float, on: bool) -> nn.Module:
    """Non-affine LayerNorm over all heads together (query-key normalisation, arXiv 2302.05442 section 2)."""
    return nn.LayerNorm(width, eps=eps, elementwise_affine=False) if on else nn.Identity()


class SelfAttention(nn.Module):
    """Multi-head attention of A = attention width, which need not be the model's."""

    def __init__(self, width: int, attention_width: int, head_dim: int, bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        if attention_width % head_dim:
            raise ConfigError(f"an attention width of {attention_width} is no multiple of 'head_dim' ({head_dim})")
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * attention_width, bias=bias)
        self.q_norm = _norm(attention_width, eps, qk_norm)
        self.k_norm = _norm(attention_width, eps, qk_norm)
        self.proj = nn.Linear(attention_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, L, A) each
        return self.proj(_attend(self.q_norm(q), self.k_norm(k), v, self.head_dim))

    def flops(self, tokens: int) -> int:
        attention_width = self.proj.in_features
        linear = self.qkv.weight.numel() + self.proj.weight.numel()
        return 2 * tokens * linear + 4 * tokens * tokens * attention_width


class CrossAttention(nn.Module):
    """Image tokens ask, caption tokens answer; always at full width."""

    def __init__(self, width: int, head_dim: int, bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_linear = nn.Linear(width, width, bias=bias)
        self.kv_linear = nn.Linear(width, 2 * width, bias=bias)
        self.q_norm = _norm(width, eps, qk_norm)
        self.k_norm = _norm(width, eps, qk_norm)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # (B, L, D), (B, S, D) -> (B, L, D)
        k, v = self.kv_linear(y).chunk(2, dim=-1)
        return self.proj(_attend(self.q_norm(self.q_linear(x)), self.k_norm(k), v, self.head_dim))

    def flops(self, tokens: int, text_tokens: int) -> int:
        width = self.q_linear.in_features
        linear = tokens * 2 * width * width + text_tokens * 2 * width * width
        return 2 * linear + 4 * tokens * text_tokens * width


def _attend(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """softmax(q k^T / sqrt(h)) v over heads of width h; (B, L, A), (B, S, A), (B, S, A) -> (B, L, A)."""
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in (q, k, v))  # (B, H, L, h)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
