"""AdamW over parameter groups by module type, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from microdit.training.config import OptimizerConfig, ScheduleConfig

GROUPS = ("embedders", "matrices", "norms", "biases")
EMBEDDERS = (nn.Conv2d, nn.Embedding)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def learning_rate(step: int, steps: int, peak: float, config: ScheduleConfig) -> float:
    """The rate of 0-based `step` in a run of `steps`: linear warmup to `peak`, then constant or cosine.

    The last step of a cosine runs at `final_ratio * peak` exactly.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.type == "constant":
        return peak
    span = max(steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return peak * (config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Every trainable parameter under exactly one of `GROUPS`, decided by the type of the module that holds it.

    Raises AssertionError where a parameter is claimed twice or not at all: a rule that silently never fires would
    change the study, not the log.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    claimed: dict[int, str] = {}
    for path, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full = f"{path}.{name}"
            assert id(parameter) not in claimed, f"{full} is also {claimed[id(parameter)]}: claimed twice"
            claimed[id(parameter)] = full
            groups[_group_of(module, name, parameter)].append(parameter)
    missing = [name for name, p in net.named_parameters() if p.requires_grad and id(p) not in claimed]
    assert not missing, f"no optimiser group claims {missing}"
    return groups


def _group_of(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMS):
        return "norms"
    if parameter.ndim < 2 or name.endswith("bias"):
        return "biases"
    return "embedders" if isinstance(module, EMBEDDERS) else "matrices"


def build_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, its fused kernel where the device has one; groups carry their name under 'name'."""
    groups = [
        {
            "name": name,
            "params": parameters,
            "weight_decay": 0.0 if name in config.no_decay else config.weight_decay,
        }
        for name, parameters in parameter_groups(net).items()
        if parameters
    ]
    device = next(net.parameters()).device.type
    fused = device in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
