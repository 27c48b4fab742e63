"""What a whole run costs by its structure; `microdit.model.cost` says what is counted."""

from __future__ import annotations

from microdit.config import Config
from microdit.model import cost
from microdit.training.recorder import Fact


def training_flops(config: Config) -> int:
    """FLOPs of the whole training, text tokens counted as CLIP's 77."""
    return cost.training_flops(config.model) * config.training.steps * config.training.batch_size


def cost_facts(config: Config) -> dict[str, Fact]:
    """Parameters and FLOPs, as a run reports them before its first step."""
    return {
        "params": cost.parameters(config.model),
        "active_params": cost.active_parameters(config.model),
        "gflops_per_image": cost.forward_flops(config.model) / 1e9,
        "train_flops": training_flops(config),
    }
