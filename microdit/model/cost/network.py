"""Count the costs of a network: parameters, active parameters, FLOPs.

A multiply-add is 2 FLOPs. All matrix products count: linears, the patch convolution, both products of attention, and
experts by the tokens they take. Norms, activations, softmax and the position table do not. A training step costs three
forward passes, since the backward pass costs two. In masked training the mixer processes all patches and the backbone
the kept ones; sampling is unmasked. Only a network with a class of the user's is built for the
count.
"""

from __future__ import annotations

from functools import lru_cache

from microdit.model import cost
from microdit.model.config import DiTConfig
from microdit.model.cost.bundled import Counts, bundled_counts, is_bundled, seen_tokens

TEXT_TOKENS = 77  # of CLIP; pass the text encoder's own length if it differs


@lru_cache(maxsize=1024)
def _counts(config: DiTConfig, text_tokens: int, masked: bool) -> dict[str, Counts]:
    """Return the costs of each part of the network."""
    if is_bundled(config):
        return bundled_counts(config, text_tokens, masked)
    return cost.built_counts(config, text_tokens, masked)


def parameters(config: DiTConfig) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter_groups(config).values())


def parameter_groups(config: DiTConfig) -> dict[str, int]:
    """Return the number of parameters by part of the network."""
    return {name: part.parameters for name, part in _counts(config, TEXT_TOKENS, True).items()}


def active_parameters(config: DiTConfig) -> int:
    """Return the number of parameters that an average token uses.

    A token uses `capacity` of a layer's experts on average.
    """
    return round(parameters(config) - sum(part.idle for part in _counts(config, TEXT_TOKENS, True).values()))


def flops_by_part(config: DiTConfig, text_tokens: int = TEXT_TOKENS, masked: bool = True) -> dict[str, int]:
    """Return the FLOPs of one image's forward pass, by part of the network.

    Args:
        config: the architecture.
        text_tokens: S.
        masked: count the kept patches, as in training; otherwise all patches.
    """
    return {name: part.flops for name, part in _counts(config, text_tokens, masked).items()}


def tokens_seen_by(config: DiTConfig, block: int, masked: bool) -> int:
    """Return the number of tokens that a block of the backbone sees.

    Args:
        config: the architecture.
        block: of the backbone, from 0.
        masked: whether the step drops patches.
    """
    count = seen_tokens if is_bundled(config) else cost.built_seen_tokens
    return count(config, block, masked)


def forward_flops(config: DiTConfig, text_tokens: int = TEXT_TOKENS, masked: bool = True) -> int:
    """Return the FLOPs of one image's forward pass.

    Args:
        config: the architecture.
        text_tokens: S.
        masked: as in `flops_by_part`.
    """
    return sum(flops_by_part(config, text_tokens, masked).values())


def training_flops(config: DiTConfig, text_tokens: int = TEXT_TOKENS, masked: bool = True) -> int:
    """Return the FLOPs of one image in a training step.

    Args:
        config: the architecture.
        text_tokens: S.
        masked: as in `flops_by_part`.
    """
    return 3 * forward_flops(config, text_tokens, masked)


def mixer_shares(config: DiTConfig, text_tokens: int = TEXT_TOKENS) -> dict[str, float]:
    """Return the mixer's parameters and training FLOPs relative to the backbone's.

    Args:
        config: the architecture.
        text_tokens: S.
    """
    params, flops = parameter_groups(config), flops_by_part(config, text_tokens)
    return {
        "mixer_params_ratio": params["mixer"] / params["backbone"],
        "mixer_flops_ratio": flops["mixer"] / flops["backbone"],
    }
