"""Count the costs of a network: parameters, active parameters, FLOPs.

A multiply-add is 2 FLOPs. All matrix products count: linears, the patch convolution, both products of attention, and
experts by the tokens they take. Norms, activations, softmax and the position table do not. A training step costs three
forward passes, since the backward pass costs two. In masked training the mixer processes all patches and the backbone
the kept ones; sampling is unmasked.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from microdit.model.config import DiTConfig
from microdit.model.dit import DiT
from microdit.model.layers.moe import ExpertChoice

TEXT_TOKENS = 77  # of CLIP; pass the text encoder's own length if it differs


@lru_cache(maxsize=256)
def meta_network(config: DiTConfig) -> DiT:
    """Return the network without storage, for counting."""
    with torch.device("meta"):
        return DiT(config, seed=None)


def parameters(config: DiTConfig) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter_groups(config).values())


def parameter_groups(config: DiTConfig) -> dict[str, int]:
    """Return the number of parameters by part of the network."""
    net = meta_network(config)
    parts = {
        "embedders": (net.x_embedder, net.t_embedder, net.y_embedder, net.pooled_embedder),
        "caption_block": (net.caption_block,),
        "mixer": (net.mixer,),
        "masking": (net.masking,),
        "backbone": (net.blocks,),
        "head": (net.final_layer,),
    }
    counts = {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}
    total = sum(p.numel() for p in net.parameters())
    assert sum(counts.values()) == total, f"parts sum to {sum(counts.values())}, the network has {total}"
    return counts


def active_parameters(config: DiTConfig) -> int:
    """Return the number of parameters that an average token uses.

    A token uses `capacity` of a layer's experts on average.
    """
    idle = 0.0
    for module in meta_network(config).modules():
        if isinstance(module, ExpertChoice):
            idle += (module.w1.numel() + module.w2.numel()) * (1 - module.capacity / len(module.w1))
    return round(parameters(config) - idle)


def flops_by_part(config: DiTConfig, text_tokens: int = TEXT_TOKENS, masked: bool = True) -> dict[str, int]:
    """Return the FLOPs of one image's forward pass, by part of the network.

    Args:
        config: the architecture.
        text_tokens: S.
        masked: count the kept patches, as in training; otherwise all patches.
    """
    net = meta_network(config)
    patches = config.patches
    return {
        "embedders": net.x_embedder.flops(patches)
        + net.t_embedder.flops()
        + net.y_embedder.flops(text_tokens)
        + net.pooled_embedder.flops(1),
        "caption_block": net.caption_block.flops(text_tokens),
        "mixer": net.mixer.flops(patches, net.masking.entering(masked), text_tokens),
        "masking": net.masking.own_flops(masked, text_tokens),
        "backbone": sum(
            block.flops(net.masking.seen_by(i, masked), text_tokens)  # type: ignore[operator]
            for i, block in enumerate(net.blocks)
        ),
        "head": net.final_layer.flops(net.masking.leaving(masked)),
    }


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
