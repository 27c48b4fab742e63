"""Read a checkpoint's tensors, whole or only the rows that a process needs.

An unsharded run writes one file per part of its state. The processes of a sharded run write one file each, with their
rows of every tensor. `index.json` then records the shapes, and which rows are in which file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microdit.common.errors import CheckpointError
from microdit.common.files.digests import file_digest
from microdit.common.files.tensors import is_finite
from microdit.training.run_files import INDEX, shard_name

Shape = tuple[int, ...]

MOST_PROCESSES = 99_999  # as many as the names of their files can number
MALFORMED = (AttributeError, OverflowError)  # raised by JSON of other types or sizes than ours


@dataclass
class TensorFiles:
    """Open the files of a checkpoint, each once and after verifying its digest.

    Nothing is verified if `digests` is None. Otherwise, a file without a digest is rejected.
    """

    folder: Path
    digests: Mapping[str, str] | None = None  # SHA-256 by file name
    _verified: set[str] = field(default_factory=set)
    _opened: dict[str, Any] = field(default_factory=dict)

    def verify(self, name: str) -> Path:
        """Check that a file is as it was written, at the first call for it.

        Args:
            name: of the file.

        Returns:
            Its path.

        Raises:
            CheckpointError: if it is missing, changed or damaged.
        """
        path = self.folder / Path(name).name
        if self.digests is None or name in self._verified:
            return path
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if file_digest(path) != self.digests.get(name):
            raise CheckpointError(f"{path}: wrong checksum: the file was changed or damaged since it was written")
        self._verified.add(name)
        return path

    def open(self, name: str) -> Any:
        """Return safetensors' reader of a file.

        Args:
            name: of the file.

        Returns:
            The reader.

        Raises:
            CheckpointError: if the file is missing or damaged; names it.
        """
        if name not in self._opened:
            path = self.verify(name)
            with naming(path):
                self._opened[name] = safe_open(path, "pt")
        return self._opened[name]


@dataclass(frozen=True)
class StoredTensor:
    """Locate one tensor: its shape, and the files with its rows in order."""

    files: TensorFiles
    key: str
    shape: Shape
    pieces: tuple[tuple[str, int, int], ...]  # file name, first row, row after the last; (0, 1) for a scalar

    @property
    def ndim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def read(self, rows: slice | None = None) -> Tensor:
        """Read the tensor, or some of its rows.

        Args:
            rows: the rows to read, with a start and a stop; None reads all.

        Returns:
            (rows, ...) on the CPU.

        Raises:
            CheckpointError: if a file is missing or damaged, or has NaN or infinity.
        """
        first, last = (0, self.pieces[-1][2]) if rows is None else (rows.start, rows.stop)
        found = [self._piece(*piece, first, last) for piece in self.pieces if piece[1] < last and first < piece[2]]
        if not found:  # no rows: keep the dtype
            found = [self._piece(*self.pieces[0], 0, 1)[:0]]
        with naming(self.files.folder / INDEX):
            return found[0] if len(found) == 1 else torch.cat(found)

    def _piece(self, file: str, start: int, stop: int, first: int, last: int) -> Tensor:
        path = self.files.folder / file
        reader = self.files.open(file)
        with naming(path):
            if not self.shape:
                piece = reader.get_tensor(self.key)
            else:
                piece = reader.get_slice(self.key)[max(first, start) - start : min(last, stop) - start]
        if not is_finite(piece):
            raise CheckpointError(f"{path}: has NaN or infinity in {self.key}")
        return piece


def whole_parts(files: TensorFiles, parts: tuple[str, ...]) -> dict[str, dict[str, StoredTensor]]:
    """Return the tensors of an unsharded checkpoint, by part and name.

    Args:
        files: of the checkpoint.
        parts: names of the files, without their suffix.

    Returns:
        The tensors, not yet read.

    Raises:
        CheckpointError: if a file is missing or damaged; names it.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    for part in parts:
        name = f"{part}.safetensors"
        reader = files.open(name)
        with naming(files.folder / name):
            shapes = {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118
        found[part] = {
            key: StoredTensor(files, key, shape, ((name, 0, shape[0] if shape else 1),))
            for key, shape in shapes.items()
        }
    return found


def sharded_parts(files: TensorFiles, parts: tuple[str, ...]) -> dict[str, dict[str, StoredTensor]]:
    """Return the tensors of a sharded checkpoint, by part and name, from its index.

    Args:
        files: of the checkpoint.
        parts: the parts to return.

    Returns:
        The tensors, not yet read.

    Raises:
        CheckpointError: if the index is missing or damaged.
    """
    path = files.verify(INDEX)
    with naming(path):
        index = json.loads(path.read_text(encoding="utf-8"))
        count, listing = int(index["processes"]), index["parts"]
        return {
            part: {name: _indexed(files, f"{part}/{name}", entry, count) for name, entry in listing[part].items()}
            for part in parts
        }


def _indexed(files: TensorFiles, key: str, entry: Mapping[str, Any], processes: int) -> StoredTensor:
    shape = tuple(map(int, entry["shape"]))
    if not entry["split"]:
        return StoredTensor(files, key, shape, ((shard_name(0, processes), 0, shape[0] if shape else 1),))
    if not 1 <= processes <= MOST_PROCESSES or shape[0] < 1:
        raise ValueError(f"{key} has {shape[0]} rows in {processes} files")
    splits = row_splits(shape[0], processes)
    ranges = zip(range(processes), splits, splits[1:], strict=False)
    return StoredTensor(files, key, shape, tuple((shard_name(r, processes), a, b) for r, a, b in ranges if a < b))


def row_splits(rows: int, processes: int) -> list[int]:
    """Return the first row of each process, and the number of rows at the end.

    Args:
        rows: of the whole tensor.
        processes: that share it; as with `torch.chunk`, the first ones hold equally many, the last ones fewer.
    """
    size = -(-rows // processes)
    return [min(process * size, rows) for process in range(processes + 1)]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a CheckpointError that names it.

    Args:
        path: the file.

    Yields:
        Nothing.

    Raises:
        CheckpointError: instead of the error.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, *MALFORMED) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: can't be read as part of a checkpoint: {reason}") from None
