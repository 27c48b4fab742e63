"""Read captioned images with the package `datasets` (the extra `hub`): saved on disk, on the hub, or webdataset tars.

Images are decoded by this project's reader, like those of a folder.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from microdit.common.errors import ConfigError, DataError, nearest
from microdit.common.files.text import clean_caption, decode_text
from microdit.common.rng import hash_to_unit_interval
from microdit.data.image_folder.dataset import FOLDER_VERSION
from microdit.data.images.reader import central_square, decode_image
from microdit.data.latents.writer import Record, Source

HUB = "hf:"
IMAGES, TEXTS, LABELS = (
    ("image", "jpg", "jpeg", "png", "webp"),
    ("text", "caption", "captions", "txt", "prompt"),
    ("label", "cls"),
)
HELD_OUT = ("validation", "val")  # names of splits that are not trained on
FAILURES = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError)


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None to look for the usual names."""

    image: str | None = None
    text: str | None = None
    label: str | None = None


class TableSource(Source):
    """The rows of one or more splits, read one at a time in their order.

    All rows are read, but only wanted chunks are decoded. A row is held out if its split is called validation or val.
    Without such a split, it is held out if the hash of its name and the seed is below `val_fraction`.

    Args:
        word: a folder saved by `datasets`, hf:NAME, or a glob of tars.
        resolution: side of the images in pixels.
        seed: random seed of the split.
        val_fraction: share of the rows held out, if no split is.
        columns: names of the columns.

    Raises:
        ConfigError: if the package or a column is missing.
        DataError: if the rows can't be read.
    """

    def __init__(self, word: str, resolution: int, seed: int, val_fraction: float, columns: Columns) -> None:
        self._word, self.resolution = word, resolution
        self._seed, self._fraction = seed, val_fraction
        self._splits: dict[str, Any] = _open(word)
        first = next(iter(self._splits.values()))
        names = list(first.features or next(iter(first)))
        self._image = _column(word, names, columns.image, IMAGES, "image")
        self._text = _column(word, names, columns.text, TEXTS, "text")
        self._label = columns.label or next((name for name in LABELS if name in names), None)
        feature = (first.features or {}).get(self._label) if self._label else None
        self.classes = tuple(getattr(feature, "names", None) or ())
        self.description = {
            "kind": "datasets",
            "path": word,
            "splits": {name: _count(split) for name, split in self._splits.items()},
            "columns": [self._image, self._text, self._label],
            "val_fraction": val_fraction,
            "seed": seed,
            "files": _stamp(word),
            "reader": FOLDER_VERSION,
        }

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Record] | None]]:
        rows, k = self._records(), 0
        while (first := next(rows, None)) is not None:
            rest = islice(rows, size - 1)
            yield k, chain([first], rest) if wanted(k) else None
            for _ in rest:
                pass
            k += 1

    def _records(self) -> Iterator[Record]:
        by_split = any(name in HELD_OUT for name in self._splits)
        for split, rows in self._splits.items():
            key = "the start"
            try:
                for i, row in enumerate(_undecoded(rows, self._image)):
                    key = row.get("__key__") or f"{split}/{i}"
                    held_out = (
                        split in HELD_OUT if by_split else hash_to_unit_interval(self._seed, key) < self._fraction
                    )
                    load = partial(_load, row[self._image], f"{key} of {self._word}", self.resolution)
                    yield Record(key, _caption(row[self._text], key), self._number(row), held_out, load)
            except UnicodeDecodeError as error:
                raise DataError(f"{self._word}: the caption after {key} is not UTF-8 ({error.reason})") from None
            except FAILURES as error:
                reason = " ".join(str(error).split())[:300]
                raise DataError(f"{self._word}: can't be read after {key}: {reason}") from None

    def _number(self, row: Mapping[str, Any]) -> int:
        label = row.get(self._label) if self._label else None
        return label if isinstance(label, int) and not isinstance(label, bool) and label >= 0 else -1


def _open(word: str) -> dict[str, Any]:
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(f"'{word}' is read by the package datasets: pip install 'microdit[hub]'")
    import datasets

    path = Path(word).expanduser()
    try:
        if word.startswith(HUB):
            found: Any = datasets.load_dataset(word.removeprefix(HUB), streaming=True)
        elif path.is_dir():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset("webdataset", data_files={"train": tars(word)}, streaming=True)
    except UnicodeDecodeError as error:  # datasets reads the first samples here
        raise DataError(f"'{word}': one of the first captions is not UTF-8 ({error.reason})") from None
    except FAILURES as error:
        hint = "; without a connection, give a folder written by its save_to_disk" if word.startswith(HUB) else ""
        raise DataError(f"'{word}': datasets can't open it: {' '.join(str(error).split())[:300]}{hint}") from None
    if not isinstance(found, Mapping):
        return {"train": found}
    splits = {name: found[name] for name in ("train", *HELD_OUT) if name in found}
    if "train" not in splits:
        raise DataError(f"'{word}' has no split 'train', only {', '.join(map(str, found))}")
    return splits


def tars(word: str) -> list[str]:
    """Return the tar files that match a glob or a name, in order."""
    return sorted(glob.glob(str(Path(word).expanduser()), recursive=True))


def _undecoded(rows: Any, image: str) -> Iterator[Mapping[str, Any]]:
    from datasets import Image

    return iter(rows.cast_column(image, Image(decode=False)))


def _load(found: Any, name: str, resolution: int) -> np.ndarray:
    data = found.get("bytes") if isinstance(found, Mapping) else None
    path = found.get("path") if isinstance(found, Mapping) else None
    if data is None and path is not None and Path(path).is_file():
        data = Path(path).read_bytes()
    if not data:
        raise DataError(f"image {name} is empty")
    return central_square(decode_image(data, name), resolution)


def _caption(found: Any, key: str) -> str:
    if isinstance(found, list) and found:
        found = found[0]  # of several captions the first is used
    if isinstance(found, bytes):
        found = decode_text(found, f"the caption of {key}")
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{key} has no caption, but {found!r}")
    return clean_caption(found, f"the caption of {key}")


def _column(word: str, names: Sequence[str], given: str | None, usual: Sequence[str], what: str) -> str:
    if given is not None and given not in names:
        raise ConfigError(f"--{what}-column is '{given}', which '{word}' hasn't; {nearest(given, names)}")
    found = given or next((name for name in usual if name in names), None)
    if found is None:
        raise ConfigError(f"'{word}' has no column {' or '.join(usual)}; name one with --{what}-column: {names}")
    return found


def _count(split: Any) -> int | None:
    return len(split) if hasattr(split, "__len__") else None


def _stamp(word: str) -> str | None:
    """Return a digest of the names and sizes of local files, which detects changes between calls."""
    path = Path(word).expanduser()
    files = sorted(path.rglob("*.arrow")) if path.is_dir() else [Path(name) for name in tars(word)]
    facts = [(file.name, file.stat().st_size) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16] if facts else None
