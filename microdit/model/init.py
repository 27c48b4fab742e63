"""All initialisation in one place: which parameter starts how, and from which random stream.

Each parameter draws from its own stream, named after it: arms of a study that share a seed start equal wherever their
shapes agree, whatever else one of them has besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock, FinalLayer
from microdit.model.moe import ExpertChoice
from microdit.rng import generator

if TYPE_CHECKING:
    from microdit.model.dit import DiT

Rule = Callable[[Tensor, torch.Generator], None]

STD = 0.02


@torch.no_grad()
def initialise(net: DiT, seed: int) -> None:
    """Sets every parameter, as the released model starts.

    Linears are Xavier-uniform with zero biases, embedders normal (0.02). In blocks, the inputs of attention and
    feed-forwards are normal (0.02, truncated at two deviations), their outputs 0.02 / sqrt(2 (i + 1)) in the backbone's
    block i and 0.02 / sqrt(2 depth) in the mixer's. adaLN outputs, the head and the caption block's outputs are zero,
    so that a block is the identity at first (adaLN-zero, DiT, arXiv 2212.09748 section 3.2).
    """
    parameters = dict(net.named_parameters())
    for name, rule in _rules(net).items():
        rule(parameters[name], generator(seed, f"init/{name}"))


@torch.no_grad()
def initialise_beside(part: nn.Module, seed: int, name: str) -> None:
    """Sets every parameter of a part that is trained beside the network, by the general rules, in streams of `name`."""
    parameters = dict(part.named_parameters())
    for path, rule in _general_rules(part).items():
        rule(parameters[path], generator(seed, f"init/{name}.{path}"))


def _rules(net: DiT) -> dict[str, Rule]:
    """One rule for each parameter: a general one, then the exceptions of the parts."""
    rules = _general_rules(net)
    for path in ("t_embedder", "y_embedder", "pooled_embedder"):
        rules |= {f"{name}.weight": _normal for name, _ in _linears(path, net.get_submodule(path))}
    for path, block in net.named_modules():
        if isinstance(block, CaptionBlock):
            rules |= _branches(path, block, _zero)
        elif isinstance(block, DiTBlock):
            rules |= _branches(path, block, _truncated(STD / math.sqrt(2 * _depth_for_output(net, path))))
            rules[f"{path}.adaLN_modulation.1.weight"] = _zero
        elif isinstance(block, FinalLayer):
            rules[f"{path}.linear.weight"] = rules[f"{path}.adaLN_modulation.1.weight"] = _zero
    return rules


def _general_rules(part: nn.Module) -> dict[str, Rule]:
    return {
        f"{path}.{name}".lstrip("."): _general(module, parameter)
        for path, module in part.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def _depth_for_output(net: DiT, path: str) -> int:
    """1-based place of a backbone block; the whole depth for a block of the mixer or of a plugin."""
    stack, _, index = path.rpartition(".")
    return int(index) + 1 if stack == "blocks" else len(list(net.get_submodule(stack).children()))


def _branches(path: str, block: DiTBlock | CaptionBlock, output: Rule) -> dict[str, Rule]:
    """Inputs of attention and feed-forward at 0.02, their outputs by `output`."""
    rules: dict[str, Rule] = {}
    for branch, module in block.named_children():
        if branch in ("attn", "cross_attn", "mlp"):
            names = [f"{name}.weight" for name, _ in _linears(f"{path}.{branch}", module)]
            if isinstance(module, ExpertChoice):
                names += [f"{path}.{branch}.w1", f"{path}.{branch}.w2"]
            rules |= dict.fromkeys(names, _truncated(STD))
            if names:
                rules[names[-1]] = output  # the last matrix of each branch leads back to the residual stream
    return rules


def _linears(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, part) for name, part in module.named_modules(prefix=path) if isinstance(part, nn.Linear))


def _general(module: nn.Module, parameter: Tensor) -> Rule:
    if isinstance(module, nn.LayerNorm) and parameter is module.weight:
        return _one
    if parameter.ndim < 2:
        return _zero
    return _xavier if isinstance(module, (nn.Linear, nn.Conv2d)) else _truncated(STD)


def _zero(weight: Tensor, _: torch.Generator) -> None:
    weight.zero_()


def _one(weight: Tensor, _: torch.Generator) -> None:
    weight.fill_(1.0)


def _normal(weight: Tensor, draw: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=draw) * STD)


def _xavier(weight: Tensor, draw: torch.Generator) -> None:
    bound = math.sqrt(6 / (len(weight) + weight[0].numel()))  # a convolution is a linear over its patch
    weight.copy_((torch.rand(weight.shape, generator=draw) * 2 - 1) * bound)


def _truncated(std: float) -> Rule:
    def fill(weight: Tensor, draw: torch.Generator) -> None:
        weight.copy_(nn.init.trunc_normal_(torch.empty(weight.shape), std=std, a=-2 * std, b=2 * std, generator=draw))

    return fill
