"""Store an optimizer's state as a safetensors and a JSON file.

Any state dict of nested dicts, lists, tuples, numbers, strings and tensors can be stored, including those of plugins'
optimizers. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microdit.common.errors import CheckpointError
from microdit.common.files.tensors import read_tensors, write_tensors
from microdit.training.run_files import REST, TENSORS

TENSOR, TUPLE, PAIRS = "tensor", "tuple", "pairs"  # keys of JSON objects that represent other types


def write_optimizer(folder: Path, state: Mapping[str, Any]) -> None:
    """Write an optimizer's state.

    Args:
        folder: where the two files are written.
        state: a state dict.

    Raises:
        CheckpointError: if the state holds an object of an unsupported type.
    """
    tensors: dict[str, Tensor] = {}
    rest = _encode(state, "", tensors)
    write_tensors(folder / TENSORS, tensors)
    (folder / REST).write_text(json.dumps(rest), encoding="utf-8")


def read_optimizer(folder: Path) -> dict[str, Any]:
    """Return the state dict that `write_optimizer` wrote.

    Raises:
        CheckpointError: if a file is missing or damaged; names it.
    """
    return _read(folder, read_tensors(folder / TENSORS, signed=True))


def read_layout(folder: Path) -> dict[str, Any]:
    """Return the state dict with tensors on the meta device, without their data.

    Raises:
        CheckpointError: if a file is missing or damaged; names it.
    """
    path = folder / TENSORS
    try:
        with safe_open(path, "pt") as stored, torch.device("meta"):
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118 - no mapping
            return _read(folder, {name: torch.empty(shape) for name, shape in shapes.items()})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read as an optimizer's state ({error!r:.200})") from None


def _read(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    path = folder / REST
    try:
        state = _decode(json.loads(path.read_text(encoding="utf-8")), tensors)
        if not isinstance(state, dict):
            raise ValueError("not an object")
        return state
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as an optimizer's state ({error!r:.200})") from None


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON for `value`, moving its tensors to `tensors`, keyed by their path."""
    if isinstance(value, Tensor):
        name = path.removeprefix(".")
        tensors[name] = value.detach().contiguous().clone()  # safetensors rejects tensors that share memory
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {PAIRS: [[_encode(k, path, tensors), _encode(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        parts = [_encode(part, f"{path}.{i}", tensors) for i, part in enumerate(value)]
        return {TUPLE: parts} if isinstance(value, tuple) else parts
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(
        f"the optimizer's state has {value!r:.100} at '{path.removeprefix('.')}', which can't be stored: only dicts, "
        "lists, tuples, numbers, strings and tensors can"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == TENSOR:
        return tensors[content]
    if kind == TUPLE:
        return tuple(_decode(part, tensors) for part in content)
    if kind == PAIRS:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    raise ValueError(f"unknown kind {kind!r}")
