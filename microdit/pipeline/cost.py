"""What a whole run costs by its structure; `microdit.model.cost.network` says what is counted."""

from __future__ import annotations

from functools import lru_cache

import torch

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.loss import Alignment, build_alignment
from microdit.config.schema import Config
from microdit.encoders.text import text_length
from microdit.model import DiTConfig
from microdit.model.cost import network as cost
from microdit.pipeline.run_logger import RunFact

COSTS = ("params", "active_params", "train_flops", "mixer_params_ratio", "mixer_flops_ratio")  # kept as metrics


def text_tokens(config: Config) -> int:
    """Text tokens that an image is conditioned on: the text encoder's own count, CLIP's 77 where it can't be known."""
    return text_length(config.text) or cost.TEXT_TOKENS


def forward_flops(config: Config, masked: bool = True) -> int:
    """FLOPs of one image's forward pass in training, through the network and the alignment's projector.

    The alignment's encoder is not counted: it sees each image once, before training, as the autoencoder does.
    """
    block = config.alignment.block_of(config.model.depth) - 1
    tokens = cost.meta_network(config.model).masking.seen_by(block, masked)
    beside = _alignment(config.alignment, config.model).flops(tokens)
    return cost.forward_flops(config.model, text_tokens(config), masked) + beside


def image_flops(config: Config, masked: bool = True) -> int:
    """FLOPs that one image costs in a training step: the backward pass is two forward ones."""
    return 3 * forward_flops(config, masked)


def training_flops(config: Config) -> int:
    """FLOPs of the whole training, its unmasked tail included."""
    settings = config.training
    tail = settings.steps - settings.masked_steps
    flops = settings.masked_steps * image_flops(config) + (tail * image_flops(config, masked=False) if tail else 0)
    return flops * settings.batch_size


def trained_parameters(config: Config) -> int:
    """Parameters that the optimiser updates: the network's, and those that are trained beside it."""
    beside = _alignment(config.alignment, config.model).parameters()
    return cost.parameters(config.model) + sum(parameter.numel() for parameter in beside)


@lru_cache(maxsize=256)
def _alignment(config: AlignmentConfig, model: DiTConfig) -> Alignment:
    """The alignment without storage, to be counted."""
    with torch.device("meta"):
        return build_alignment(config, model, seed=None)


def cost_facts(config: Config) -> dict[str, RunFact]:
    """Parameters of the network that is sampled from, and FLOPs, as a run reports them before its first step."""
    return {
        "params": cost.parameters(config.model),
        "active_params": cost.active_parameters(config.model),
        "gflops_per_image": forward_flops(config) / 1e9,
        "train_flops": training_flops(config),
        **cost.mixer_shares(config.model, text_tokens(config)),
    }
