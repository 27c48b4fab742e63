"""Optimizers over parameter groups by module type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microdit.common.errors import ConfigError
from microdit.common.registry import Registry
from microdit.training.config import OptimizerConfig
from microdit.training.optim import registry
from microdit.training.optim.muon import CpuMuon

GROUPS = ("embedders", "matrices", "norms", "biases")

STACKS = ("mixer", "masking", "blocks")  # a network's parts between its embedders and its head

EMBEDDERS = (nn.Conv2d, nn.Embedding)

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def parameter_groups(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return every trainable parameter under exactly one of `GROUPS`.

    The group depends on the type of the parameter's module.

    Raises:
        AssertionError: if a parameter is in two groups or in none.
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
    assert not missing, f"no optimizer group has {missing}"
    return groups


def _group_of(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORMS):
        return "norms"
    if parameter.ndim < 2 or name.endswith("bias"):
        return "biases"
    return "embedders" if isinstance(module, EMBEDDERS) else "matrices"


def hidden_matrices(net: nn.Module) -> list[Tensor]:
    """Return the 2-D weights of all linear layers in `STACKS`.

    Returns:
        Weights (out, in), including those of adaLN and of expert gates, but not the experts' 3-D ones.
    """
    return [
        module.weight
        for path, module in net.named_modules()
        if not {*path.split(".")}.isdisjoint(STACKS) and isinstance(module, nn.Linear) and module.weight.requires_grad
    ]


def build_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer that `config.type` names.

    Args:
        net: holds all parameters of the training state.
        config: settings of the optimizer.

    Returns:
        An optimizer whose groups list their parameters' names under 'param_names'.

    Raises:
        ConfigError: if it isn't an optimizer, or doesn't hold every trainable parameter of `net` exactly once.
    """
    optimizer = OPTIMIZERS.resolve(config.type)(net, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"'optimizer.type' is '{config.type}', which made {optimizer!r}; it must make an Optimizer")
    held = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    wrong = [name for name, parameter in net.named_parameters() if held[id(parameter)] != parameter.requires_grad]
    if wrong:
        raise ConfigError(
            f"'optimizer.type' is '{config.type}'; it must contain each trainable parameter exactly "
            f"once and no frozen ones; violated by {wrong[:5]}"
        )
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for group in optimizer.param_groups:
        group["param_names"] = [names.get(id(parameter), "") for parameter in group["params"]]
    return optimizer


def adamw(net: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over all parameter groups.

    Args:
        net: the network to train.
        config: settings of the optimizer.

    Returns:
        The optimizer; each group has its name under 'name'.
    """
    return _adamw_over(parameter_groups(net), net, config)


def muon(net: nn.Module, config: OptimizerConfig) -> ChainedOptimizer:
    """Build Muon for hidden matrices, and AdamW for all other parameters.

    See Jordan et al., https://kellerjordan.github.io/posts/muon.

    AdamW updates embedders, the caption block, head, norms, biases and experts, because Muon is meant for the 2-D
    weights of hidden layers. Muon's update is scaled to AdamW's root mean square (Liu et al., arXiv 2502.16982, section
    2.2), so that both use the same learning rate and weight decay. A fused matrix (queries, keys and values) counts as
    one.

    Args:
        net: the network to train; needs a linear layer in `STACKS`.
        config: settings of both optimizers.

    Returns:
        Both, with the group "hidden" first.
    """
    hidden = hidden_matrices(net)
    assert hidden, f"no linear under any of {STACKS}: Muon would have nothing to update"
    taken = {id(parameter) for parameter in hidden}
    groups = parameter_groups(net)
    assert taken <= {id(parameter) for parameter in groups["matrices"]}, "a hidden matrix is in another group"
    rest = {name: [p for p in members if id(p) not in taken] for name, members in groups.items()}
    kind = CpuMuon if hidden[0].device.type == "cpu" else torch.optim.Muon
    first = kind(
        _with_decay({"hidden": hidden}, config),
        lr=config.lr,
        momentum=config.muon.momentum,
        nesterov=config.muon.nesterov,
        ns_steps=config.muon.ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    return ChainedOptimizer(first, _adamw_over(rest, net, config))


OptimizerBuilder = Callable[[nn.Module, OptimizerConfig], torch.optim.Optimizer]

OPTIMIZERS: Registry[OptimizerBuilder] = registry.OPTIMIZERS
register_optimizer = OPTIMIZERS.register


class ChainedOptimizer(torch.optim.Optimizer):
    """Combine several optimizers over disjoint parameters.

    They share one list of groups, one state and one state dict, and step in turn.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every part."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict into all parts.

        Args:
            state_dict: of a ChainedOptimizer with the same parts.
        """
        super().load_state_dict(state_dict)
        self._share()  # loading replaces the groups and the state

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def _adamw_over(groups: Mapping[str, Sequence[Tensor]], net: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW, with its fused kernel if the device has one."""
    device = next(net.parameters()).device.type
    fused = device in ("cuda", "cpu")
    return torch.optim.AdamW(
        _with_decay(groups, config), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused
    )


def _with_decay(groups: Mapping[str, Sequence[Tensor]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return torch's parameter groups with name and weight decay, without empty ones."""
    return [
        {
            "name": name,
            "params": parameters,
            "weight_decay": 0.0 if name in config.no_decay else config.weight_decay,
        }
        for name, parameters in groups.items()
        if parameters
    ]
