"""Store many rows in safetensors files, memory-mapped and named by their digest.

A shard is written under a temporary name and renamed, so an existing shard is complete. Its name ends in the first
digits of its SHA-256, so later changes are detected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from microdit.common.errors import DataError, shown
from microdit.common.files.atomic import scratch_folder

SUFFIX = ".safetensors"
DIGEST_DIGITS = 16  # hex digits of the digest in a file name
DTYPES = {"F16": np.float16, "I64": np.int64, "U64": np.uint64, "U8": np.uint8, "BOOL": np.bool_}
REMEDY = "delete it and repeat the command to make it again"
HEADER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Shard:
    """One file; its tensors are views of the mapped file."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]  # metadata that the writer added

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise DataError(f"{self.path}: has no tensor '{name}', only {', '.join(self.tensors)}")
        return self.tensors[name]


def write_shard(folder: Path, prefix: str, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Write `folder`/`prefix`DIGEST.safetensors.

    Args:
        folder: where the file is written; it is created if necessary.
        prefix: start of the file's name.
        tensors: arrays by name, of the types in DTYPES.
        facts: JSON metadata.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "shard") as scratch:
        temporary = scratch / "shard"
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(arrays, temporary, {"facts": json.dumps(facts, ensure_ascii=False)})
        target = folder / f"{prefix}{digest_of(temporary)}{SUFFIX}"
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, target)
    return target


def digest_of(path: Path) -> str:
    """Return the first digits of the file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGEST_DIGITS]


def open_shard(path: Path) -> Shard:
    """Map a shard, reading only its header.

    Returns:
        The shard; its tensors are read when they are used.

    Raises:
        DataError: if the file is truncated or of another format.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise DataError(f"{path}: not a safetensors file, or truncated ({size} bytes); {REMEDY}")
        try:
            header = json.loads(stream.read(length))
            facts = json.loads(header.pop("__metadata__", {}).get("facts", "{}"))
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if not isinstance(facts, dict) or not isinstance(end, int):
                raise ValueError("its metadata is not an object")
        except HEADER_ERRORS as error:
            raise DataError(f"{path}: its header can't be read ({shown(error)}); {REMEDY}") from None
    if size != 8 + length + end:
        raise DataError(f"{path}: is {size} bytes, but its header describes {8 + length + end}; {REMEDY}")
    data = np.asarray(np.memmap(path, np.uint8, "r"))[8 + length :]
    try:
        tensors = {name: _view(data, entry) for name, entry in header.items()}
    except HEADER_ERRORS as error:
        raise DataError(f"{path}: its header doesn't match its data ({shown(error)}); {REMEDY}") from None
    return Shard(path, tensors, facts)


def _view(data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    return data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def check_shard(path: Path) -> None:
    """Check a shard's header and checksum.

    Raises:
        DataError: if it cannot be opened or is damaged.
    """
    open_shard(path)
    check_digest(path)


def check_digest(path: Path) -> None:
    """Read the whole file and compare its digest with its name.

    Raises:
        DataError: if they differ.
    """
    found = digest_of(path)
    if not path.stem.endswith(found):
        raise DataError(f"{path}: wrong checksum ({found}): the file was changed or damaged; {REMEDY}")


class ConcatArray:
    """Read arrays of several files as one (N, ...), row by row."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all parts together.

        Returns:
            (N, ...).
        """
        return (len(self), *self._parts[0].shape[1:])

    def place(self, row: int) -> tuple[int, int]:
        """Find a row.

        Args:
            row: from 0 to N - 1.

        Returns:
            The index of the part that has the row, and the row within that part.
        """
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return part, row - int(self._starts[part])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read rows, in the given order.

        Args:
            rows: (B,) int, each from 0 to N - 1; may repeat.

        Returns:
            (B, ...).
        """
        found = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        which = np.searchsorted(self._starts, rows, "right") - 1
        for part in np.unique(which):
            here = which == part
            found[here] = self._parts[part][rows[here] - self._starts[part]]
        return found


def pack(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Join strings for storage as arrays.

    Args:
        words: n strings.

    Returns:
        Their UTF-8 bytes (sum of lengths,) uint8, and the end of each string (n,) int64.
    """
    encoded = [word.encode() for word in words]
    ends = np.cumsum([len(word) for word in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def unpack(text: np.ndarray, ends: np.ndarray, i: int) -> str:
    """Return one of the strings that `pack` joined.

    Args:
        text: the bytes.
        ends: the ends.
        i: the string's index.
    """
    return text[int(ends[i - 1]) if i else 0 : int(ends[i])].tobytes().decode()
