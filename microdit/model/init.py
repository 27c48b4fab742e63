"""All initialisation in one place: which parameter starts how, and from which random stream.

Each parameter draws from its own stream, named after it: arms of a study that share a seed start equal wherever their
shapes agree, whatever else one of them has besides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock, FinalLayer
from microdit.model.moe import ExpertChoice
from microdit.rng import generator

STD = 0.02


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """Sets every parameter of a `DiT`, as the released model starts.

    Linears are Xavier-uniform with zero biases; inputs of attention and feed-forwards are normal (0.02, truncated at two
    deviations), their outputs 0.02 / sqrt(2 (i + 1)) in the backbone's block i and 0.02 / sqrt(2 depth) in the mixer;
    embedders are normal (0.02). adaLN outputs, the head and the caption block's outputs are zero, so that a block is the
    identity at first (adaLN-zero, arXiv 2212.09748 section 3.2).
    """
    draw = _Draw(seed)
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            draw.xavier(f"{name}.weight", module.weight)
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.weight.fill_(1.0)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()
    _embedders(net, draw)
    _stack(net, "blocks", lambda i: STD / math.sqrt(2 * (i + 1)), draw)
    depth = len(getattr(net.mixer, "blocks", ()))  # type: ignore[arg-type]
    _stack(net, "mixer.blocks", lambda i: STD / math.sqrt(2 * depth), draw)
    for name, module in net.named_modules():
        if isinstance(module, (DiTBlock, FinalLayer)):
            module.adaLN_modulation[1].weight.zero_()  # type: ignore[union-attr, operator]
        if isinstance(module, FinalLayer):
            module.linear.weight.zero_()
        if isinstance(module, CaptionBlock):
            _branches(name, module, 0.0, draw)


class _Draw:
    """Fills parameters from streams named after them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _stream(self, name: str) -> torch.Generator:
        return generator(self.seed, f"init/{name}")

    def xavier(self, name: str, weight: Tensor) -> None:
        bound = math.sqrt(6 / (weight.shape[0] + weight.shape[1]))
        self._fill(weight, (torch.rand(weight.shape, generator=self._stream(name)) * 2 - 1) * bound)

    def normal(self, name: str, weight: Tensor, std: float = STD) -> None:
        self._fill(weight, torch.randn(weight.shape, generator=self._stream(name)) * std)

    def truncated(self, name: str, weight: Tensor, std: float) -> None:
        if std == 0:
            weight.zero_()
            return
        value = torch.empty(weight.shape)
        nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=self._stream(name))
        self._fill(weight, value)

    @staticmethod
    def _fill(weight: Tensor, value: Tensor) -> None:
        if not weight.is_meta:
            weight.copy_(value)


def _embedders(net: nn.Module, draw: _Draw) -> None:
    for name, module in net.named_modules():
        owner = name.split(".")[0]
        if owner in ("x_embedder", "t_embedder", "y_embedder", "pooled_embedder") and hasattr(module, "weight"):
            if isinstance(module, nn.Conv2d):
                flat = module.weight.view(len(module.weight), -1)
                draw.xavier(f"{name}.weight", flat)
            elif isinstance(module, nn.Linear):
                draw.normal(f"{name}.weight", module.weight)


def _stack(net: nn.Module, path: str, output_std: object, draw: _Draw) -> None:
    for name, module in net.named_modules():
        parent, _, index = name.rpartition(".")
        if parent == path:
            _branches(name, module, output_std(int(index)), draw)  # type: ignore[operator]


def _branches(name: str, block: nn.Module, output_std: float, draw: _Draw) -> None:
    """Inputs of a block's attention and feed-forward at 0.02, their outputs at `output_std`."""
    for path, module in block.named_modules(prefix=name):
        leaf = path.rpartition(".")[2]
        if isinstance(module, ExpertChoice):
            draw.truncated(f"{path}.w1", module.w1, STD)
            draw.truncated(f"{path}.w2", module.w2, output_std)
        elif isinstance(module, nn.Linear) and "adaLN" not in path:
            is_output = leaf == "proj" or leaf == _output_name(block)
            draw.truncated(f"{path}.weight", module.weight, output_std if is_output else STD)


def _output_name(block: nn.Module) -> str:
    """The feed-forward's last linear: w3 of a SwiGLU, w2 of a GELU."""
    linears = [name for name, module in block.mlp.named_children() if isinstance(module, nn.Linear)]  # type: ignore[union-attr, operator]
    return linears[-1] if linears and linears[-1] != "gate" else ""
