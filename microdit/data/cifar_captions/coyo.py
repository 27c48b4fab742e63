"""Stream metadata with COYO-700M's columns from parquet files or from a dataset of the Hugging Face hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
"""Columns that are read, with their types; COYO-700M has more."""


class Source(Protocol):
    """Stream rows of metadata."""

    rows: int | None  # None if their number is not known before they are read

    @property
    def identity(self) -> list[list[Any]]:
        """Return JSON that identifies the metadata without reading its content."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """Return facts for the data card, such as each file's name and SHA-256."""
        ...

    def check(self, columns: Iterable[str]) -> None:
        """Check that the metadata has the columns, as far as this is known before reading.

        Raises:
            DataError: if one is missing.
        """
        ...

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Read the rows in order.

        Args:
            columns: keys of `TYPES`.

        Yields:
            Batches with these columns, cast to `TYPES`.

        Raises:
            DataError: if a file can't be read, or a column is missing or of another type.
        """
        ...


@dataclass(frozen=True)
class ParquetSource(Source):
    """Parquet files in the order of their names."""

    files: tuple[Path, ...]
    rows: int

    @property
    def identity(self) -> list[list[Any]]:
        return [[path.name, path.stat().st_size] for path in self.files]

    def describe(self) -> list[dict[str, Any]]:
        return [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in self.files]

    def check(self, columns: Iterable[str]) -> None:
        for path in self.files:
            _require(columns, _metadata(path).schema.to_arrow_schema().names, str(path))

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in self.files:
            try:
                with pq.ParquetFile(path) as opened:
                    for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
                        yield _cast(batch, columns, str(path))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} can't be read to its end: {_line(error)}") from error


@dataclass(frozen=True)
class HubSource(Source):
    """Stream the train split of a dataset of the Hugging Face hub, by the library `datasets`."""

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


def open_source(given: str) -> Source:
    """Return the source that `--coyo` names.

    Args:
        given: a folder, a glob, a file, or else a dataset "OWNER/NAME" of the hub.

    Raises:
        DataError: if there is none, or a file is not readable.
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
        return ParquetSource(tuple(files), sum(_metadata(file).num_rows for file in files))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not given.startswith("."):
        return HubSource(given, _open_hub(given))
    raise DataError(
        f"--coyo {given}: no such folder, no file matches, and it is not a dataset name 'owner/name' (COYO-700M's "
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


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
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
