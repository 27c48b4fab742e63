"""Build the stacks of DiT blocks of the backbone and the patch-mixer."""

from __future__ import annotations

from microdit.model.config import DiTConfig
from microdit.model.layers.blocks import BlockShape, DiTBlock
from microdit.model.layers.feed_forward import FEED_FORWARDS, FeedForward
from microdit.model.layers.moe import ExpertChoice
from microdit.model.width_schedules import attention_width, hidden_width


def backbone_blocks(config: DiTConfig, shape: BlockShape) -> list[DiTBlock]:
    """Build the backbone's blocks, whose widths follow the two width schedules.

    Args:
        config: the architecture.
        shape: settings that all blocks share.

    Returns:
        `config.depth` blocks.
    """
    attn_ratios = config.attn_width.ratios(config.depth)
    ffn_ratios = config.ffn_width.ratios(config.depth)
    blocks = []
    for i, (attn_ratio, ffn_ratio) in enumerate(zip(attn_ratios, ffn_ratios, strict=True)):
        attention = attention_width(config.width, attn_ratio, config.head_dim, config.attn_width.multiple_of)
        has_experts = config.experts.in_backbone(i, config.depth)
        blocks.append(DiTBlock(shape, attention, _feed_forward(config, config.width, ffn_ratio, has_experts)))
    return blocks


def mixer_blocks(config: DiTConfig) -> list[DiTBlock]:
    """Build the patch-mixer's blocks, at its own width.

    Returns:
        `config.mixer.depth` blocks.
    """
    mixer = config.mixer
    shape = BlockShape(
        config.mixer_width, config.width, config.mixer_head_dim, config.bias, config.qk_norm, config.norm_eps
    )
    attention = attention_width(shape.width, mixer.attn_ratio, shape.head_dim, config.attn_width.multiple_of)
    return [
        DiTBlock(shape, attention, _feed_forward(config, shape.width, mixer.ffn_ratio, config.experts.in_mixer(i)))
        for i in range(mixer.depth)
    ]


def _feed_forward(config: DiTConfig, width: int, ratio: float, has_experts: bool) -> FeedForward:
    multiple_of = config.ffn_width.multiple_of
    if has_experts:
        hidden = hidden_width(width, ratio * config.experts.ffn_scale, ExpertChoice.matrices, multiple_of)
        return ExpertChoice(width, hidden, config.experts.num, config.experts.capacity)
    dense = FEED_FORWARDS.resolve(config.ffn.type)
    return dense(width, hidden_width(width, ratio, dense.matrices, multiple_of), config.bias)
