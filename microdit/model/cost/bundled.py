"""Count the costs of a network whose parts are all bundled, from its settings alone.

Nothing is built and PyTorch is not loaded, so that a plan of many networks takes no time. Tests compare the counts with
the networks' own parameters and with PyTorch's counter of FLOPs.

D model width, W width of a block's condition, T patches, K kept patches, S text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from microdit.model.config import DiTConfig
from microdit.model.layers.registry import FEED_FORWARDS, MIXERS
from microdit.model.masking.kept_patches import kept_patches
from microdit.model.masking.registry import MASKING_METHODS
from microdit.model.masking.requirements import USES_MIXER, decoder_sizes
from microdit.model.width_schedules import attention_width, hidden_width

FREQUENCIES = 512  # sinusoids of the time embedding
MATRICES = {"swiglu": 3, "gelu": 2}  # of a feed-forward, each width x hidden
ROUTED = ("routing", "sprint")  # methods whose first and last blocks see all patches


@dataclass(frozen=True)
class Counts:
    """Costs of a part of the network, for one image."""

    parameters: int = 0
    idle: float = 0.0  # parameters that an average token doesn't use
    flops: int = 0  # of a forward pass

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.parameters + other.parameters, self.idle + other.idle, self.flops + other.flops)


def is_bundled(config: DiTConfig) -> bool:
    """Return whether all parts of the network are bundled."""
    return (
        config.ffn.type in FEED_FORWARDS.bundled
        and config.mixer.type in MIXERS.bundled
        and config.masking.method in MASKING_METHODS.bundled
    )


def bundled_counts(config: DiTConfig, text_tokens: int, masked: bool) -> dict[str, Counts]:
    """Return the costs of each part of a network for which `is_bundled` holds.

    Args:
        config: the architecture.
        text_tokens: S.
        masked: whether patches are dropped, as in training.
    """
    method = config.masking.method
    width, patches = config.width, config.patches
    entering, leaving = entering_tokens(config, masked), leaving_tokens(config, masked)
    head_width = decoder_sizes(config)[0] if method == "maskdit" else width
    patch_values = config.patch_size**2 * config.in_channels
    hidden = hidden_width(width, config.caption_ffn_ratio, MATRICES["swiglu"], config.ffn_width.multiple_of)
    return {
        "embedders": _linear(patch_values, width, patches)
        + _linear(FREQUENCIES, width)
        + _linear(width, width)
        + _caption_mlp(config.caption_channels, width, text_tokens)
        + _caption_mlp(width, width, 1),
        "caption_block": _norm(width, 2)
        + _self_attention(width, width, text_tokens, config.bias)
        + _feed_forward("swiglu", width, hidden, text_tokens, config.bias),
        "mixer": _mixer(config, entering, text_tokens),
        "masking": _masking(config, entering, text_tokens),
        "backbone": _backbone(config, masked, text_tokens),
        "head": _final_layer(width, head_width, patch_values, leaving),
    }


def entering_tokens(config: DiTConfig, masked: bool) -> int:
    """Return the number of tokens that enter the backbone.

    Args:
        config: the architecture.
        masked: whether the step drops patches.
    """
    if not masked or config.masking.method in ROUTED:
        return config.patches
    return kept_patches(config.side, config.masking.ratio, config.masking.block_size)


def leaving_tokens(config: DiTConfig, masked: bool) -> int:
    """Return the number of tokens that the head receives.

    Args:
        config: the architecture.
        masked: whether the step drops patches.
    """
    return config.patches if config.masking.method == "maskdit" else entering_tokens(config, masked)


def seen_tokens(config: DiTConfig, block: int, masked: bool) -> int:
    """Return the number of tokens that a block of the backbone sees.

    Args:
        config: the architecture.
        block: of the backbone, from 0.
        masked: whether the step drops patches.
    """
    masking = config.masking
    routed = masking.route.before <= block < config.depth - masking.route.after
    if masked and masking.method in ROUTED and routed:
        return kept_patches(config.side, masking.ratio, masking.block_size)
    return entering_tokens(config, masked)


def _linear(width_in: int, width_out: int, tokens: int = 1, bias: bool = True) -> Counts:
    return Counts(width_in * width_out + (width_out if bias else 0), 0.0, 2 * tokens * width_in * width_out)


def _norm(width: int, count: int = 1) -> Counts:
    return Counts(count * width)


def _caption_mlp(width_in: int, width: int, tokens: int) -> Counts:
    return _linear(width_in, width, tokens) + _norm(width) + _linear(width, width, tokens)


def _self_attention(width: int, attention: int, tokens: int, bias: bool) -> Counts:
    products = Counts(flops=4 * tokens * tokens * attention)
    return _linear(width, 3 * attention, tokens, bias) + _linear(attention, width, tokens, bias) + products


def _cross_attention(width: int, tokens: int, text_tokens: int, bias: bool) -> Counts:
    products = Counts(flops=4 * tokens * text_tokens * width)
    of_image = _linear(width, width, tokens, bias) + _linear(width, width, tokens, bias)
    return of_image + _linear(width, 2 * width, text_tokens, bias) + products


def _feed_forward(kind: str, width: int, hidden: int, tokens: int, bias: bool) -> Counts:
    total = _linear(hidden, width, tokens, bias)
    for _ in range(MATRICES[kind] - 1):
        total += _linear(width, hidden, tokens, bias)
    return total


def _experts(config: DiTConfig, width: int, hidden: int, tokens: int) -> Counts:
    num, capacity = config.experts.num, config.experts.capacity
    weights, taken = 2 * num * width * hidden, max(int(capacity * tokens / num), 1)
    flops = num * taken * 4 * width * hidden
    return _linear(width, num, tokens, bias=False) + Counts(weights, weights * (1 - capacity / num), flops)


def _modulation(condition: int, width: int, count: int) -> Counts:
    return _linear(condition, count * width)


def _final_layer(condition: int, width: int, width_out: int, tokens: int) -> Counts:
    return _norm(width) + _linear(width, width_out, tokens) + _modulation(condition, width, 2)


def _block(config: DiTConfig, width: int, attention: int, mlp: Counts, tokens: int, text_tokens: int) -> Counts:
    attentions = _self_attention(width, attention, tokens, config.bias)
    attentions += _cross_attention(width, tokens, text_tokens, config.bias)
    return _norm(width, 3) + attentions + mlp + _modulation(config.width, width, 6)


def _mlp(config: DiTConfig, width: int, ratio: float, tokens: int, has_experts: bool) -> Counts:
    multiple_of = config.ffn_width.multiple_of
    if has_experts:
        hidden = hidden_width(width, ratio * config.experts.ffn_scale, 2, multiple_of)
        return _experts(config, width, hidden, tokens)
    kind = config.ffn.type
    return _feed_forward(kind, width, hidden_width(width, ratio, MATRICES[kind], multiple_of), tokens, config.bias)


def _backbone(config: DiTConfig, masked: bool, text_tokens: int) -> Counts:
    width, total = config.width, Counts()
    ratios = zip(config.attn_width.ratios(config.depth), config.ffn_width.ratios(config.depth), strict=True)
    for index, (attention_ratio, ffn_ratio) in enumerate(ratios):
        tokens = seen_tokens(config, index, masked)
        attention = attention_width(width, attention_ratio, config.head_dim, config.attn_width.multiple_of)
        mlp = _mlp(config, width, ffn_ratio, tokens, config.experts.in_backbone(index, config.depth))
        total += _block(config, width, attention, mlp, tokens, text_tokens)
    return total


def _mixer(config: DiTConfig, entering: int, text_tokens: int) -> Counts:
    mixer, width, total = config.mixer, config.mixer_width, Counts()
    if config.masking.method not in USES_MIXER or not mixer.depth:
        return total
    attention = attention_width(width, mixer.attn_ratio, config.mixer_head_dim, config.attn_width.multiple_of)
    for index in range(mixer.depth):
        mlp = _mlp(config, width, mixer.ffn_ratio, config.patches, config.experts.in_mixer(index))
        total += _block(config, width, attention, mlp, config.patches, text_tokens)
    if width != config.width:
        for width_in, width_out, tokens in (
            (config.width, width, config.patches),
            (config.width, width, text_tokens),
            (width, config.width, entering),
        ):
            total += _norm(width_in) + _linear(width_in, width_out, tokens, bias=False)
    return total


def _fusion(config: DiTConfig, entering: int, text_tokens: int) -> Counts:
    """Return the costs of SPRINT's own parts."""
    return Counts(config.width) + _linear(2 * config.width, config.width, config.patches)


def _decoder(config: DiTConfig, entering: int, text_tokens: int) -> Counts:
    """Return the costs of MaskDiT's own parts."""
    width, decoder = decoder_sizes(config)[0], config.masking.decoder
    total = Counts(width) + _final_layer(config.width, config.width, width, entering)
    if width != config.width:
        total += _linear(config.width, width, text_tokens, bias=False)
    for _ in range(decoder.depth):
        mlp = _mlp(config, width, decoder.ffn_ratio, config.patches, has_experts=False)
        total += _block(config, width, width, mlp, config.patches, text_tokens)
    return total


OWN_PARTS: dict[str, Callable[[DiTConfig, int, int], Counts]] = {"maskdit": _decoder, "sprint": _fusion}


def _masking(config: DiTConfig, entering: int, text_tokens: int) -> Counts:
    own = OWN_PARTS.get(config.masking.method)
    return own(config, entering, text_tokens) if own else Counts()
