"""Stream COYO-shaped metadata.

Sources are parquet files of a folder or glob, or a dataset of the Hugging Face hub.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from microdit.common.errors import DataError, nearest
from microdit.common.files.digests import sha256

BATCH_ROWS = 65_536
TYPES: dict[str, pa.DataType] = {
    "id": pa.int64(),
    "url": pa.string(),
    "text": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "image_phash": pa.string(),
    "clip_similarity_vitb32": pa.float64(),
    "watermark_score": pa.float64(),
    "aesthetic_score_laion_v2": pa.float64(),
    "nsfw_score_opennsfw2": pa.float64(),
    "nsfw_score_gantman": pa.float64(),
}
"""The columns that are read; COYO-700M has more."""


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files in the order of their names."""

    given: str
    files: tuple[Path, ...]
    rows: int

    @property
    def identity(self) -> list[list[Any]]:
        """Return names and sizes, which show later whether the files are the same."""
        return [[path.name, path.stat().st_size] for path in self.files]

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size and content hash of each file; reads all of them."""
        return [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in self.files]

    def check(self, columns: Iterable[str]) -> None:
        """Check that every file has the columns.

        Raises:
            DataError: if one is missing.
        """
        for path in self.files:
            _require(columns, _schema(path).names, str(path))

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield record batches of these columns, cast to `TYPES`."""
        for path in self.files:
            try:
                with pq.ParquetFile(path) as opened:
                    for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
                        yield _cast(batch, columns, str(path))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} can't be read to its end: {_line(error)}") from error


@dataclass(frozen=True)
class HubSource:
    """Stream the train split of a dataset of the Hugging Face hub.

    The library `datasets` reads it.
    """

    given: str
    stream: Any = field(repr=False)
    rows: None = None

    @property
    def identity(self) -> list[list[Any]]:
        return [[self.given]]

    def describe(self) -> list[dict[str, Any]]:
        info = getattr(self.stream, "info", None)
        return [{"dataset": self.given, "version": str(getattr(info, "version", None) or "unknown")}]

    def check(self, columns: Iterable[str]) -> None:
        names = self.stream.column_names
        if names is not None:
            _require(columns, names, self.given)

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        chosen = self.stream.select_columns(columns).with_format("arrow")
        for table in chosen.iter(batch_size=BATCH_ROWS):
            _require(columns, table.column_names, self.given)
            for batch in table.combine_chunks().to_batches():
                yield _cast(batch.select(columns), columns, self.given)


Source = ParquetSource | HubSource


def open_source(given: str) -> Source:
    """Return the source that `--coyo` names.

    It is a folder, a glob, a file, or else a dataset "owner/name" of the hub.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        if not files:
            raise DataError(f"--coyo {given}: the folder has no *.parquet file")
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if files:
        return ParquetSource(given, tuple(files), sum(_rows(file) for file in files))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not given.startswith("."):
        return HubSource(given, _open_hub(given))
    raise DataError(
        f"--coyo {given}: no such folder, no file matches, and it is no dataset name like 'owner/name' (COYO-700M's "
        "is kakaobrain/coyo-700m)"
    )


def _open_hub(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"--coyo {name}: no such folder; to stream it as a dataset of the Hugging Face hub, "
            "pip install 'microdit[hub]'"
        ) from error
    try:
        return datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # the library raises its own exceptions, the hub client's and the network's
        raise DataError(f"--coyo {name}: the dataset can't be opened: {_line(error)}") from error


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {_line(error)}") from error


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {_line(error)}") from error


def _require(columns: Iterable[str], names: list[str], where: str) -> None:
    for column in columns:
        if column not in names:
            raise DataError(f"{where} has no column '{column}', which COYO-700M has; {nearest(column, names)}")


def _cast(batch: pa.RecordBatch, columns: list[str], where: str) -> pa.RecordBatch:
    arrays = []
    for column in columns:
        try:
            array = batch.column(column).cast(TYPES[column])
            array.validate(full=True)  # text is UTF-8
            arrays.append(array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{where}, column '{column}': not {TYPES[column]}: {_line(error)}") from error
    return pa.RecordBatch.from_arrays(arrays, names=columns)


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
