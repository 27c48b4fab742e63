"""What a whole run costs by its structure; `microdit.model.cost` says what is counted."""

from __future__ import annotations

from microdit.config import Config
from microdit.encoders.text import text_length
from microdit.model import cost
from microdit.training.recorder import Fact

COSTS = ("params", "active_params", "train_flops", "mixer_params_ratio", "mixer_flops_ratio")  # kept as metrics


def text_tokens(config: Config) -> int:
    """Text tokens that an image is conditioned on: the text encoder's own count, CLIP's 77 where it can't be known."""
    return text_length(config.text) or cost.TEXT_TOKENS


def forward_flops(config: Config) -> int:
    """FLOPs of one image's forward pass as in training."""
    return cost.forward_flops(config.model, text_tokens(config))


def training_flops(config: Config) -> int:
    """FLOPs of the whole training, its unmasked tail included."""
    settings, tokens = config.training, text_tokens(config)
    masked = settings.masked_steps * cost.training_flops(config.model, tokens)
    tail = settings.steps - settings.masked_steps
    unmasked = tail * cost.training_flops(config.model, tokens, masked=False) if tail else 0
    return (masked + unmasked) * settings.batch_size


def cost_facts(config: Config) -> dict[str, Fact]:
    """Parameters and FLOPs, as a run reports them before its first step."""
    return {
        "params": cost.parameters(config.model),
        "active_params": cost.active_parameters(config.model),
        "gflops_per_image": forward_flops(config) / 1e9,
        "train_flops": training_flops(config),
        **cost.mixer_shares(config.model, text_tokens(config)),
    }
