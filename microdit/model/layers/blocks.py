"""Define the transformer blocks.

These are the DiT block with adaLN-zero and cross-attention, the caption block, and the head.

B batch, L tokens, S text tokens, D width (of the block), W width (of the condition).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microdit.model.conditioning import CachedCaptions, Captions
from microdit.model.cost.flops import linear_flops
from microdit.model.layers.attention import CrossAttention, SelfAttention
from microdit.model.layers.feed_forward import FeedForward
from microdit.model.layers.norm import Norm


@dataclass(frozen=True)
class BlockShape:
    """Hold the settings that all blocks of one stack share."""

    width: int
    condition_width: int
    head_dim: int
    bias: bool
    qk_norm: bool
    eps: float

    def norm(self) -> Norm:
        """Build a LayerNorm over the block's width, without bias.

        Returns:
            The norm, with a weight of its own.
        """
        return Norm(self.width, self.eps)


class Modulation(nn.Sequential):
    """Compute `count` shifts, scales and gates from the condition.

    This is adaLN (DiT, arXiv 2212.09748, section 3.2).
    """

    def __init__(self, shape: BlockShape, count: int) -> None:
        super().__init__(nn.GELU("tanh"), nn.Linear(shape.condition_width, count * shape.width))
        self.count = count

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:  # (B, W) -> count times (B, 1, D)
        return super().forward(c).unsqueeze(1).chunk(self.count, dim=2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift normalized tokens.

    Args:
        x: (B, L, D).
        shift: (B, 1, D).
        scale: (B, 1, D), relative to 1.

    Returns:
        (B, L, D).
    """
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Apply self-attention, cross-attention to the caption, and feed-forward.

    Self-attention and feed-forward are modulated and gated by the condition.
    """

    recomputes = False  # whether the backward pass repeats the forward pass; set by `DiT.save_memory`

    def __init__(self, shape: BlockShape, attention_width: int, mlp: FeedForward) -> None:
        super().__init__()
        s = shape
        self.norm1 = s.norm()
        self.attn = SelfAttention(s.width, attention_width, s.head_dim, s.bias, s.qk_norm, s.eps)
        self.norm2 = s.norm()
        self.cross_attn = CrossAttention(s.width, s.head_dim, s.bias, s.qk_norm, s.eps)
        self.norm3 = s.norm()
        self.mlp = mlp
        self.adaLN_modulation = Modulation(s, 6)

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:  # (B, L, D), (B, W), (B, S, D) -> (B, L, D)
        if self.recomputes and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._forward, x, c, y, use_reentrant=False)
            return out
        return self._forward(x, c, y)

    def _forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.adaLN_modulation(c)
        x = x + gate_a * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        x = x + self._from_caption(x, y)
        return x + gate_f * self.mlp(modulate(self.norm3(x), shift_f, scale_f))

    def _from_caption(self, x: Tensor, y: Captions) -> Tensor:  # (B, L, D), (B, S, D) -> (B, L or 1, D)
        if isinstance(y, CachedCaptions) and y.alike:
            return self.cross_attn.of_equal_tokens(y)
        return self.cross_attn(self.norm2(x), y)

    def flops(self, tokens: int, text_tokens: int) -> int:
        attention = self.attn.flops(tokens) + self.cross_attn.flops(tokens, text_tokens)
        return attention + self.mlp.flops(tokens) + linear_flops(self.adaLN_modulation, 1)


class CaptionBlock(nn.Module):
    """Apply pre-norm self-attention and feed-forward to caption tokens.

    The block runs once, before the image tokens attend to the caption.
    """

    def __init__(self, shape: BlockShape, mlp: FeedForward) -> None:
        super().__init__()
        s = shape
        self.norm1 = s.norm()
        self.attn = SelfAttention(s.width, s.width, s.head_dim, s.bias, s.qk_norm, s.eps)
        self.norm2 = s.norm()
        self.mlp = mlp

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, S, D), (B, S) -> (B, S, D)
        y = y + self.attn(self.norm1(y), mask)
        return y + self.mlp(self.norm2(y))

    def flops(self, text_tokens: int) -> int:
        return self.attn.flops(text_tokens) + self.mlp.flops(text_tokens)


class FinalLayer(nn.Module):
    """Map tokens to patch values with a modulated LayerNorm and a linear.

    The values of a patch are in (row, column, channel) order.
    """

    def __init__(self, shape: BlockShape, patch_values: int) -> None:
        super().__init__()
        self.norm_final = shape.norm()
        self.linear = nn.Linear(shape.width, patch_values)
        self.adaLN_modulation = Modulation(shape, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # (B, L, D), (B, W) -> (B, L, patch values)
        shift, scale = self.adaLN_modulation(c)
        return self.linear(modulate(self.norm_final(x), shift, scale))

    def flops(self, tokens: int) -> int:
        return linear_flops(self.linear, tokens) + linear_flops(self.adaLN_modulation, 1)
