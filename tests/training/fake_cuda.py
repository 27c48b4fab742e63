"""Simulate a CUDA device without a GPU: FakeTensorMode computes shapes, dtypes and devices, but no values.

A tensor left on the CPU raises as it would with a GPU. Values that a program reads from a tensor are made up. The
harness records where each read happens, because on a GPU every such place waits for the device.

Not possible under the mode, and therefore done outside it or omitted:
- a network's initial weights (torch's trunc_normal_ looks at what it drew) and weights read from files: modules are
  made as real ones on the CPU and then moved to the device, under the mode, by the program's own `.to(device)`;
- writing checkpoints and safetensors files, the encoded-data cache and PNG files: there are no values to write;
- scores: torch-fidelity's statistics need values;
- torch's autograd engine, which needs a driver: a small one in Python runs the same nodes;
- torch.compile, FSDP and several processes;
- CUDA's own kernels: whether a kernel exists for a dtype or size, memory, speed and rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes

import microdit
from microdit.config.schema import Config
from microdit.pipeline.inputs import build_accelerator

PACKAGE = Path(microdit.__file__).parent
CUDA = torch.device("cuda", 0)


@dataclass
class Reads:
    """Record the functions that wait for the device, as `module.function`."""

    of_device: set[str] = field(default_factory=set)  # those that read values of device tensors
    copies: set[str] = field(default_factory=set)  # those that copy between CPU and device, and wait for the copy

    def value(self, tensor: Tensor) -> bool | int | float:
        """Return zero for a tensor on the device, one for a tensor on the CPU."""
        number = 1
        if tensor.device.type == "cuda":
            self.of_device.add(_reader())
            number = 0
        return bool(number) if tensor.dtype == torch.bool else float(number) if tensor.is_floating_point() else number


def _reader() -> str:
    """Return the innermost function of the package on the stack."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return ".".join([*path.relative_to(PACKAGE).with_suffix("").parts, frame.f_code.co_qualname])
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class _Mode(FakeTensorMode):
    """Implement `item`, `bool`, `int`, `float`, and boolean indices, which take all rows.

    Operations whose result's shape depends on values, such as `nonzero`, fail after they are recorded.
    """

    def __init__(self, reads: Reads) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.reads = reads
        self._inside = False  # an operation that this mode computes by others, as a GPU doesn't

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits_for_a_copy(func, args, kwargs or {}) and not self._inside:
            self.reads.copies.add(_reader())
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return self.reads.value(args[0])
        if func in INDEXING:
            booleans = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if "cuda" in _devices(booleans):
                self.reads.of_device.add(_reader())
            if booleans and func is torch.ops.aten.index.Tensor:
                with self:
                    args = (args[0], [None if i is None else torch.arange(len(i), device=i.device) for i in args[1]])
        elif any(tag in func.tags for tag in READS_VALUES) and "cuda" in _devices(args):
            self.reads.of_device.add(_reader())
        before, self._inside = self._inside, True
        try:
            return super().dispatch(func, types, args, kwargs or {})
        finally:
            self._inside = before


def _devices(values: Iterable[Any]) -> set[str]:
    return {value.device.type for value in values if isinstance(value, Tensor)}


def _waits_for_a_copy(func: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Return whether a call copies between CPU and device and does not return before the copy is made."""
    if func is torch.ops.aten.where.self:  # copies a number to the device of the other arguments
        return len(_devices(args)) == 2
    if func is torch.ops.aten._to_copy.default:
        target = keywords.get("device") or args[0].device
        return _devices(args) != {torch.device(target).type} and not keywords.get("non_blocking", False)
    if func is torch.ops.aten.copy_.default:
        return len(_devices(args)) == 2 and not (keywords.get("non_blocking", False) or args[2:] == (True,))
    return False


def _answering(reads: Reads) -> dict[str, Callable[..., Any]]:
    """Replace tensor methods: `tolist` and `numpy` return zeros, the latter only on the CPU."""
    own = {name: getattr(Tensor, name) for name in ("numpy", "tolist", "backward")}

    def numpy(tensor: Tensor, *args: Any, **keywords: Any) -> np.ndarray:
        if not isinstance(tensor, FakeTensor):
            return own["numpy"](tensor, *args, **keywords)
        if tensor.device.type == "cuda":
            raise TypeError("can't convert a tensor on the device to numpy: copy it to the CPU first")
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def tolist(tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return own["tolist"](tensor)
        if tensor.device.type == "cuda":
            reads.of_device.add(_reader())
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")).tolist()

    def run_backward(tensor: Tensor, *args: Any, **keywords: Any) -> None:
        if isinstance(tensor, FakeTensor):
            backward(tensor)
        else:
            own["backward"](tensor, *args, **keywords)

    return {"numpy": numpy, "tolist": tolist, "backward": run_backward}


def backward(loss: Tensor) -> None:
    """Replace torch's autograd engine, which needs a driver for the streams of CUDA tensors."""
    order: list[Any] = []
    _visit(loss.grad_fn, order, set())
    incoming: dict[Any, list[Tensor | None]] = {node: [None] * len(node._input_metadata) for node in order}
    incoming[loss.grad_fn][0] = torch.ones_like(loss)
    with torch.no_grad():
        for node in reversed(order):
            if all(grad is None for grad in incoming[node]):
                continue
            found = node(*incoming.pop(node))
            grads = found if isinstance(found, tuple) else (found,)
            for (target, number), grad in zip(node.next_functions, grads, strict=True):
                if target is not None and grad is not None:
                    expected = target._input_metadata[number]
                    assert grad.device == expected.device, f"{node.name()} gives {target.name()} a gradient elsewhere"
                    if grad.shape != expected.shape:  # it was broadcast
                        grad = grad.sum_to_size(expected.shape)
                    if grad.dtype != expected.dtype:
                        grad = grad.to(expected.dtype)
                    before = incoming[target][number]
                    incoming[target][number] = grad if before is None else before + grad


def _visit(node: Any, order: list[Any], seen: set[Any]) -> None:
    """Append the graph under `node`, each node after those that it passes gradients to."""
    stack = [(node, False)]
    while stack:
        current, done = stack.pop()
        if done:
            order.append(current)
        elif current not in seen:
            seen.add(current)
            stack.append((current, True))
            stack += [(target, False) for target, _ in current.next_functions if target is not None]


def _to(module: nn.Module, *args: Any, **keywords: Any) -> nn.Module:
    """Replace `Module.to`, which fails for fake modules; these must already be on the target device."""
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if isinstance(tensor, FakeTensor)]
    if not held:
        return _REAL_TO(module, *args, **keywords)
    device = torch._C._nn._parse_to(*args, **keywords)[0]
    assert device is None or {tensor.device.type for tensor in held} == {device.type}
    return module


_REAL_TO = nn.Module.to


@contextmanager
def fake_cuda() -> Iterator[Reads]:
    """Let `.to("cuda")` work, and let every operation check its tensors' devices."""
    reads = Reads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", _to)
        # autocast turns itself off if there is no GPU
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        for name, method in _answering(reads).items():
            patch.setattr(Tensor, name, method)
        with _Mode(reads):
            yield reads


class FakeGenerator(torch.Generator):
    """Stand in for a generator of the device, which needs a driver."""

    device = CUDA


def made_outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, giving real tensors on the CPU also if it is called under the mode."""

    def outside(*args: Any, **keywords: Any) -> Any:
        with unset_fake_temporarily(), _disable_current_modes():
            return function(*args, **keywords)

    return outside


def load_outside(encoder: Any) -> None:
    """Let a text encoder of ours load its network outside the mode, and then move it to the device."""
    load = made_outside(encoder._source.load)

    def loaded(device: torch.device) -> tuple[nn.Module, Any]:
        network, tokenizer = load(torch.device("cpu"))
        return network.to(device), tokenizer

    encoder._source = replace(encoder._source, load=loaded)


def accelerator_on_cuda(config: Config, patch: pytest.MonkeyPatch) -> Accelerator:
    """Return accelerate's Accelerator with a GPU as its device."""
    accelerator = build_accelerator(config)
    for state in (accelerator.state, PartialState()):
        patch.setitem(state.__dict__, "device", CUDA)
    assert accelerator.device == CUDA
    return accelerator
