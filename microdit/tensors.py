"""Files of tensors: safetensors whose metadata holds a digest of all tensors, verified on load.

The digest covers names, types, shapes and values, not the file's layout. Files of other programs have none and are
loaded without this check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microdit.errors import CheckpointError

DIGEST = "microdit.sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors and their digest; give a temporary path, since a kill leaves half a file."""
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    save_file(on_cpu, path, {"format": "pt", **(metadata or {}), DIGEST: tensors_digest(on_cpu)})


def read_tensors(path: Path, signed: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU and verify its digest, which must be there if `signed`.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, or holds NaN or infinity; names it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as stored:
            expected = (stored.metadata() or {}).get(DIGEST)
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: can't be read as tensors: {' '.join(str(error).split())[:200]}") from None
    if (expected is None and signed) or expected not in (None, tensors_digest(tensors)):
        raise CheckpointError(f"{path}: wrong checksum: the file was changed or damaged since it was written")
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path}: holds NaN or infinity in {', '.join(bad[:3])} ({len(bad)} tensors)")
    return tensors


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return bool((tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all())
