"""Implement self- and cross-attention with normalized queries and keys.

B batch, L tokens, S text tokens, D width, A attention width, H heads, h head width.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.model.conditioning import CachedCaptions, Captions, unpack
from microdit.model.cost.flops import linear_flops
from microdit.model.layers.norm import Norm


def _norm(width: int, eps: float, on: bool) -> nn.Module:
    """Return the query-key norm: a LayerNorm over all heads together, or the identity.

    See arXiv 2302.05442, section 2. The norm has no parameters.
    """
    return Norm(width, eps, weight=False) if on else nn.Identity()


class SelfAttention(nn.Module):
    """Attend among tokens, at a width A that may differ from the model's."""

    def __init__(self, width: int, attention_width: int, head_dim: int, bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * attention_width, bias=bias)
        self.q_norm = _norm(attention_width, eps, qk_norm)
        self.k_norm = _norm(attention_width, eps, qk_norm)
        self.proj = nn.Linear(attention_width, width, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, L, D), (B, L) -> (B, L, D)
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, L, A) each
        return self.proj(_attend(self.q_norm(q), self.k_norm(k), v, self.head_dim, mask))

    def flops(self, tokens: int) -> int:
        return linear_flops(self, tokens) + 4 * tokens * tokens * self.proj.in_features


class CrossAttention(nn.Module):
    """Attend from image tokens to caption tokens, always at full width."""

    def __init__(self, width: int, head_dim: int, bias: bool, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_linear = nn.Linear(width, width, bias=bias)
        self.kv_linear = nn.Linear(width, 2 * width, bias=bias)
        self.q_norm = _norm(width, eps, qk_norm)
        self.k_norm = _norm(width, eps, qk_norm)
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, y: Captions) -> Tensor:  # (B, L, D), (B, S, D) -> (B, L, D)
        if isinstance(y, CachedCaptions) and y.alike:
            return self.of_equal_tokens(y).expand(-1, x.shape[1], -1)
        k, v = y.once(self, partial(self._keys_values, y)) if isinstance(y, CachedCaptions) else self._keys_values(y)
        return self.proj(_attend(self.q_norm(self.q_linear(x)), k, v, self.head_dim, unpack(y)[1]))

    def _keys_values(self, y: Captions) -> tuple[Tensor, Tensor]:  # (B, S, D) -> (B, S, D) each
        k, v = self.kv_linear(unpack(y)[0]).chunk(2, dim=-1)
        return self.k_norm(k), v

    def of_equal_tokens(self, y: CachedCaptions) -> Tensor:  # (B, S, D) -> (B, 1, D)
        """Return the output for any image token if all tokens of a caption are equal.

        Whatever the weights of attention, it is the projection of the common value.

        Returns:
            One output per caption, (B, 1, D).
        """
        return y.once(self, lambda: self.proj(self._keys_values(unpack(y)[0][:, :1])[1]))

    def flops(self, tokens: int, text_tokens: int) -> int:
        of_image = linear_flops(self.q_linear, tokens) + linear_flops(self.proj, tokens)
        return of_image + linear_flops(self.kv_linear, text_tokens) + 4 * tokens * text_tokens * self.proj.in_features


def _attend(q: Tensor, k: Tensor, v: Tensor, head_dim: int, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(h)) v over heads of width h.

    On CPUs the attention is in float32 also under autocast: its bfloat16 backward pass takes five times as long.

    Args:
        q: (B, L, A).
        k: (B, S, A).
        v: (B, S, A).
        head_dim: h.
        mask: (B, S) bool; keys at False get no weight.

    Returns:
        (B, L, A).
    """
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in (q, k, v))  # (B, H, L, h)
    seen = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, S)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return out.transpose(1, 2).flatten(2)
