"""Initialize all parameters, each from its own random stream.

A parameter's stream is named after it. Arms of a study that share a seed start equal wherever their shapes agree,
regardless of their other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from microdit.common.rng import generator
from microdit.model.layers.blocks import CaptionBlock, DiTBlock, FinalLayer
from microdit.model.layers.moe import ExpertChoice

Rule = Callable[[Tensor, torch.Generator], None]

STD = 0.02
BOUND = 2.0  # of truncated normals: absolute, as in the released model, so in effect none


@torch.no_grad()
def initialize(net: nn.Module, seed: int) -> None:
    """Set every parameter as the released model does.

    Linears are Xavier-uniform, embedders normal (0.02). Biases are zero, except the patch embedding's, which keeps a
    convolution's default. In blocks, the inputs of attention and feed-forwards are normal (0.02). Their outputs, and
    further parameters that a feed-forward lists in `depth_scaled`, are normal with 0.02 / sqrt(2 (i + 1)) in the
    backbone's block i. In all other stacks (the mixer, MaskDiT's decoder) they have 0.02 / sqrt(2 depth), with the
    backbone's depth. adaLN outputs, the head and the caption block's outputs are zero, so that a block is the identity
    at first (adaLN-zero, DiT, arXiv 2212.09748 section 3.2).

    The tests compare the result with statistics of the released model.

    Args:
        net: a `DiT`.
        seed: of all streams.
    """
    parameters = dict(net.named_parameters())
    for name, rule in _rules(net).items():
        rule(parameters[name], generator(seed, f"init/{name}"))


@torch.no_grad()
def initialize_module(part: nn.Module, seed: int, name: str) -> None:
    """Set every parameter of a module outside the network by the general rules.

    Args:
        part: a module that is trained together with the network.
        seed: of the run.
        name: prefix of the names of the random streams.
    """
    parameters = dict(part.named_parameters())
    for path, rule in _general_rules(part).items():
        rule(parameters[path], generator(seed, f"init/{name}.{path}"))


def _rules(net: nn.Module) -> dict[str, Rule]:
    """Return one rule per parameter: the general rules, overridden by those of parts."""
    rules = _general_rules(net)
    for path in ("t_embedder", "y_embedder", "pooled_embedder"):
        rules |= {f"{name}.weight": _normal for name, _ in _linears(path, net.get_submodule(path))}
    for path, block in net.named_modules():
        if isinstance(block, CaptionBlock):
            rules |= _branches(path, block) | dict.fromkeys(_outputs(path, block), _zero)
        elif isinstance(block, DiTBlock):
            scaled = _truncated(STD / math.sqrt(2 * _depth_for_output(net, path)))
            rules |= _branches(path, block) | dict.fromkeys(_depth_scaled(path, block), scaled)
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


def _depth_for_output(net: nn.Module, path: str) -> int:
    """Return the depth that scales a block's outputs.

    It is the 1-based index of a backbone block, and the backbone's depth for blocks of any other stack.
    """
    stack, _, index = path.rpartition(".")
    return int(index) + 1 if stack == "blocks" else sum(1 for _ in net.get_submodule("blocks").children())


def _weights(path: str, block: DiTBlock | CaptionBlock) -> dict[str, list[str]]:
    """Return the weights of attention and feed-forward by branch, outputs last."""
    found = {}
    for branch in ("attn", "cross_attn", "mlp"):
        module = getattr(block, branch, None)
        if module is not None:
            found[branch] = [f"{name}.weight" for name, _ in _linears(f"{path}.{branch}", module)]
            if isinstance(module, ExpertChoice):
                found[branch] += [f"{path}.{branch}.w1", f"{path}.{branch}.w2"]
    return found


def _branches(path: str, block: DiTBlock | CaptionBlock) -> dict[str, Rule]:
    names = [name for weights in _weights(path, block).values() for name in weights]
    return dict.fromkeys(names, _truncated(STD))


def _outputs(path: str, block: DiTBlock | CaptionBlock) -> list[str]:
    """Return the matrix of each branch that leads back to the residual stream."""
    return [weights[-1] for weights in _weights(path, block).values() if weights]


def _depth_scaled(path: str, block: DiTBlock) -> list[str]:
    """Return the outputs, and further parameters that the feed-forward scales alike."""
    return _outputs(path, block) + [f"{path}.mlp.{name}" for name in block.mlp.depth_scaled]


def _linears(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((name, part) for name, part in module.named_modules(prefix=path) if isinstance(part, nn.Linear))


def _general(module: nn.Module, parameter: Tensor) -> Rule:
    if isinstance(module, nn.LayerNorm) and parameter is module.weight:
        return _one
    if isinstance(module, nn.Conv2d) and parameter is module.bias:
        return _uniform(1 / math.sqrt(module.weight[0].numel()))
    if parameter.ndim < 2:
        return _zero
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return _uniform(math.sqrt(6 / (len(parameter) + parameter[0].numel())))  # Xavier; a patch is one input
    return _truncated(STD)


def _zero(weight: Tensor, _: torch.Generator) -> None:
    weight.zero_()


def _one(weight: Tensor, _: torch.Generator) -> None:
    weight.fill_(1.0)


def _normal(weight: Tensor, draw: torch.Generator) -> None:
    weight.copy_(torch.randn(weight.shape, generator=draw) * STD)


def _uniform(bound: float) -> Rule:
    def fill(weight: Tensor, draw: torch.Generator) -> None:
        weight.copy_((torch.rand(weight.shape, generator=draw) * 2 - 1) * bound)

    return fill


def _truncated(std: float) -> Rule:
    def fill(weight: Tensor, draw: torch.Generator) -> None:
        weight.copy_(nn.init.trunc_normal_(torch.empty(weight.shape), std=std, a=-BOUND, b=BOUND, generator=draw))

    return fill
