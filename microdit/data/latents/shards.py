"""Files of many rows: safetensors, memory-mapped, named by the digest of their content.

A shard is written to a temporary name and renamed, so that one that is there is whole; its name ends in the first
digits of its SHA-256, so that one that was changed since tells so.
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
DIGITS = 16  # of the digest that a name ends in
DTYPES = {"F16": np.float16, "I64": np.int64, "U64": np.uint64, "U8": np.uint8, "BOOL": np.bool_}
REMEDY = "delete it and give the same command again: what is missing is made anew"


HEADER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Shard:
    """One file: its tensors are views of the mapped file."""

    path: Path
    tensors: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]  # what its writer noted beside them

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise DataError(f"{self.path}: has no tensor '{name}', only {', '.join(self.tensors)}")
        return self.tensors[name]


def write_shard(folder: Path, prefix: str, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Writes `folder`/`prefix`DIGEST.safetensors and returns its path; tensors of a type in DTYPES."""
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "shard") as scratch:
        temporary = scratch / "shard"
        arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(arrays, temporary, {"facts": json.dumps(facts, ensure_ascii=False)})
        target = folder / f"{prefix}{digest_of(temporary)}{SUFFIX}"
        temporary.chmod(0o644)  # the library makes files that nobody else can read
        os.replace(temporary, target)
    return target


def digest_of(path: Path) -> str:
    """First digits of the file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:DIGITS]


def open_shard(path: Path) -> Shard:
    """Maps a shard; reads its header alone. Raises DataError where it is truncated or something else."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise DataError(f"{path}: not a safetensors file, or cut off ({size} bytes); {REMEDY}")
        try:
            header = json.loads(stream.read(length))
            facts = json.loads(header.pop("__metadata__", {}).get("facts", "{}"))
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if not isinstance(facts, dict) or not isinstance(end, int):
                raise ValueError("its facts are no object")
        except HEADER_ERRORS as error:
            raise DataError(f"{path}: its header can't be read ({shown(error)}); {REMEDY}") from None
    if size != 8 + length + end:
        raise DataError(f"{path}: is {size} bytes, but its header tells of {8 + length + end}; {REMEDY}")
    data = np.asarray(np.memmap(path, np.uint8, "r"))[8 + length :]
    try:
        tensors = {name: _view(data, entry) for name, entry in header.items()}
    except HEADER_ERRORS as error:
        raise DataError(f"{path}: its header doesn't fit its data ({shown(error)}); {REMEDY}") from None
    return Shard(path, tensors, facts)


def _view(data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    start, end = entry["data_offsets"]
    return data[start:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def check_shard(path: Path) -> None:
    """Raise DataError if it can't be opened as a shard or is damaged."""
    open_shard(path)
    check_digest(path)


def check_digest(path: Path) -> None:
    """Reads the whole file. Raises DataError where it isn't what was written."""
    found = digest_of(path)
    if not path.stem.endswith(found):
        raise DataError(f"{path}: wrong checksum ({found}): the file was changed or damaged; {REMEDY}")


class ConcatArray:
    """Arrays of several files as one (N, ...), gathered row by row."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self), *self._parts[0].shape[1:])

    def place(self, row: int) -> tuple[int, int]:
        """The file that `row` is in, and its place there."""
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return part, row - int(self._starts[part])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows (B,), in their order: (B, ...)."""
        found = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        which = np.searchsorted(self._starts, rows, "right") - 1
        for part in np.unique(which):
            here = which == part
            found[here] = self._parts[part][rows[here] - self._starts[part]]
        return found


def pack(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as UTF-8 bytes (sum of lengths,) uint8, and where each ends (n,) int64."""
    encoded = [word.encode() for word in words]
    ends = np.cumsum([len(word) for word in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def unpack(text: np.ndarray, ends: np.ndarray, i: int) -> str:
    """String i of what `pack` gave."""
    return text[int(ends[i - 1]) if i else 0 : int(ends[i])].tobytes().decode()
