"""Represent an optimizer's state as JSON and tensors.

Any state dict of nested dicts, lists, tuples, numbers, strings and tensors can be stored, including those of plugins'
optimizers. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from microdit.common.errors import CheckpointError

TENSOR, TUPLE, PAIRS = "tensor", "tuple", "pairs"  # keys of JSON objects that represent other types


def encode_optimizer(state: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Return a state dict as JSON text, and its tensors by their path.

    Args:
        state: a state dict.

    Returns:
        The text, and the tensors.

    Raises:
        CheckpointError: if the state holds an object of an unsupported type.
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_encode(state, "", tensors)), tensors


def decode_optimizer(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of a JSON file.

    Args:
        path: the file.
        tensors: what to put in place of the tensors, by their path.

    Returns:
        The state dict.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
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
        tensors[name] = value.detach()
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


def _decode(value: Any, tensors: Mapping[str, Any]) -> Any:
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
