"""Count the costs of any network, by building it without storage.

Classes of the user's count their own FLOPs.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from microdit.model.config import DiTConfig
from microdit.model.cost.bundled import Counts
from microdit.model.dit import DiT
from microdit.model.layers.moe import ExpertChoice


@lru_cache(maxsize=256)
def meta_network(config: DiTConfig) -> DiT:
    """Return the network without storage, for counting."""
    with torch.device("meta"):
        return DiT(config, seed=None)


def built_counts(config: DiTConfig, text_tokens: int, masked: bool) -> dict[str, Counts]:
    """Return the costs of each part of the network.

    Args:
        config: the architecture.
        text_tokens: tokens of a caption.
        masked: whether patches are dropped, as in training.
    """
    net = meta_network(config)
    parts = {
        "embedders": (net.x_embedder, net.t_embedder, net.y_embedder, net.pooled_embedder),
        "caption_block": (net.caption_block,),
        "mixer": (net.mixer,),
        "masking": (net.masking,),
        "backbone": (net.blocks,),
        "head": (net.final_layer,),
    }
    flops = _flops(net, text_tokens, masked)
    counts = {}
    for name, modules in parts.items():
        idle = sum(_idle(layer) for module in modules for layer in module.modules())
        counts[name] = Counts(sum(p.numel() for m in modules for p in m.parameters()), idle, flops[name])
    found, total = sum(part.parameters for part in counts.values()), sum(p.numel() for p in net.parameters())
    assert found == total, f"parts sum to {found}, the network has {total}"
    return counts


def built_seen_tokens(config: DiTConfig, block: int, masked: bool) -> int:
    """Return the number of tokens that a block of the backbone sees.

    Args:
        config: the architecture.
        block: of the backbone, from 0.
        masked: whether the step drops patches.
    """
    return meta_network(config).masking.seen_by(block, masked)


def _idle(layer: torch.nn.Module) -> float:
    """Return the parameters of a layer that an average token does not use."""
    if not isinstance(layer, ExpertChoice):
        return 0.0
    return (layer.w1.numel() + layer.w2.numel()) * (1 - layer.capacity / len(layer.w1))


def _flops(net: DiT, text_tokens: int, masked: bool) -> dict[str, int]:
    patches = net.config.patches
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
