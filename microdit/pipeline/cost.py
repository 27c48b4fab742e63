"""Compute the cost of a whole run from its settings.

`microdit.model.cost.network` defines what is counted.
"""

from __future__ import annotations

from microdit.alignment.registry import feature_width
from microdit.config.schema import Config
from microdit.encoders.sizes import text_length
from microdit.model.cost import network as cost
from microdit.pipeline.run_logger import RunFact

COST_METRICS = (
    "params",
    "active_params",
    "train_flops",
    "mixer_params_ratio",
    "mixer_flops_ratio",
)  # of `cost_facts`, those logged as metrics


def text_tokens(config: Config) -> int:
    """Return the number of text tokens per caption, 77 (CLIP's) if it is unknown."""
    return text_length(config.text) or cost.TEXT_TOKENS


def forward_flops(config: Config, masked: bool = True) -> int:
    """Return the FLOPs of one image's forward pass in training.

    The network and the alignment's projector count. The alignment's encoder doesn't: like the autoencoder, it encodes
    each image once, before training.

    Args:
        config: the settings of the run.
        masked: count only the patches that masking keeps; False: all, as in the unmasked tail.
    """
    block = config.alignment.block_of(config.model.depth) - 1
    tokens = cost.tokens_seen_by(config.model, block, masked)
    aligned = sum(2 * tokens * width_in * width_out for width_in, width_out in _projector(config))
    return cost.forward_flops(config.model, text_tokens(config), masked) + aligned


def image_flops(config: Config, masked: bool = True) -> int:
    """Return the FLOPs of one image in a training step.

    The backward pass counts as two forward passes.

    Args:
        config: the settings of the run.
        masked: count only the patches that masking keeps.
    """
    return 3 * forward_flops(config, masked)


def training_flops(config: Config) -> int:
    """Return the FLOPs of the whole training, including its unmasked tail."""
    settings = config.training
    tail = settings.steps - settings.masked_steps
    flops = settings.masked_steps * image_flops(config) + (tail * image_flops(config, masked=False) if tail else 0)
    return flops * settings.batch_size


def trained_parameters(config: Config) -> int:
    """Return the number of parameters that the optimizer updates.

    The alignment's projector counts.
    """
    aligned = sum((width_in + 1) * width_out for width_in, width_out in _projector(config))
    return cost.parameters(config.model) + aligned


def _projector(config: Config) -> list[tuple[int, int]]:
    """Return the sizes of the alignment's linears; [] without alignment."""
    width = config.model.width
    features = feature_width(config.alignment, config.model.side)
    hidden = width if config.alignment.hidden is None else config.alignment.hidden
    return [(width, hidden), (hidden, hidden), (hidden, features)] if features else []


def cost_facts(config: Config) -> dict[str, RunFact]:
    """Return what a run logs about its cost before its first step.

    Returns:
        `params` and `active_params` (of the sampled network), `gflops_per_image` (10^9 FLOPs of a forward pass),
        `train_flops` (of the whole training), and the patch mixer's shares of parameters and FLOPs.
    """
    return {
        "params": cost.parameters(config.model),
        "active_params": cost.active_parameters(config.model),
        "gflops_per_image": forward_flops(config) / 1e9,
        "train_flops": training_flops(config),
        **cost.mixer_shares(config.model, text_tokens(config)),
    }
