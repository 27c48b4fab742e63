"""Write and read tensors in safetensors files with metadata and a digest.

The digest is verified on load. It covers names, types, shapes, values and metadata, but not the file's layout. Files of
other programs have no digest and are loaded without this check. Equal tensors and metadata give equal files, byte for
byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microdit.common.errors import CheckpointError

METADATA = "microdit"  # the only key, because safetensors writes several keys in random order
DIGEST = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write tensors, metadata and their digest.

    The write is not atomic: use a temporary path.

    Args:
        path: the file.
        tensors: contiguous, on any device.
        facts: metadata.
    """
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    stored = {**(facts or {}), DIGEST: tensors_digest(on_cpu, facts or {})}
    save_file(on_cpu, path, {METADATA: json.dumps(stored, sort_keys=True)})


def read_facts(path: Path) -> dict[str, str]:
    """Return the metadata of a file; {} if another program wrote it.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _opened(path) as stored:
        facts = _metadata(stored)
    facts.pop(DIGEST, None)
    return facts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as stored:
            yield stored
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read as weights: {' '.join(str(error).split())[:200]}") from None


def _metadata(stored: Any) -> dict[str, str]:
    """Return the metadata and the digest of an opened file."""
    values = json.loads((stored.metadata() or {}).get(METADATA, "{}"))
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError("its metadata is damaged")
    return values


def read_tensors(path: Path, signed: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file and verify its digest.

    Args:
        path: the file.
        signed: reject a file without a digest.

    Returns:
        Tensors on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated or damaged, or has NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with _opened(path) as stored:
        facts = _metadata(stored)
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    expected = facts.pop(DIGEST, None)
    if (expected is None and signed) or expected not in (None, tensors_digest(tensors, facts)):
        raise CheckpointError(f"{path}: wrong checksum: the file was changed or damaged since it was written")
    bad = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path}: has NaN or infinity in {', '.join(bad[:3])} ({len(bad)} tensors)")
    return tensors


def tensors_digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes, values and metadata.

    Args:
        tensors: on any device.
        facts: metadata.
    """
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity.

    Args:
        tensor: of any dtype.
    """
    if not tensor.is_floating_point():
        return True
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all())
