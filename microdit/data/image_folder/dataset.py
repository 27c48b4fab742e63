"""Provide the dataset `folder`: your own captioned images.

Captions come from `metadata.jsonl` or `metadata.csv` at the top of the folder, in the Hugging Face `imagefolder`
convention (`file_name`, `text` or `caption`, optionally `label` and `split`), or else from a `.txt` file beside each
image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from microdit.common.errors import ConfigError, DataError
from microdit.common.rng import hash_to_unit_interval
from microdit.data.config import DataConfig
from microdit.data.dataset import Sample
from microdit.data.image_folder.metadata import SPLIT_NAMES, CaptionedFile, read_captions, shorten_list
from microdit.data.images.reader import FORMATS, header_fault, load_square

MAX_CLASSES = 100_000
FOLDER_VERSION = 2  # raise it when a change gives the same files other pixels or captions


class ImageFolder:
    """Captioned images below one folder, center-cropped to a square and resized.

    The metadata's `split` decides which files are held out for val. Without it, a file is held out if the hash of its
    name and the seed is below `val_fraction`, so an image keeps its split when others are added. Images of a split are
    in the order of their hashes.

    Raises:
        ConfigError: if `path` is not set, or the split is "composition".
        DataError: if the folder, a caption or an image is missing or broken; the message names the files.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if split == "composition":
            raise ConfigError("dataset 'folder' has no split 'composition' (only 'emoji-captions' has); use 'val'")
        if not config.path:
            raise ConfigError("dataset 'folder' needs 'data.path', the folder of the images")
        self._root = Path(config.path).expanduser()
        if not self._root.is_dir():
            raise DataError(f"'data.path' is '{config.path}', which is not a folder")
        self.resolution = config.resolution
        found = split_folder(self._root, config.seed, config.val_fraction)
        self.classes = found.classes
        limit = config.train_size if split == "train" else config.val_size
        self._entries = found.sides[split][:limit]
        if not self._entries:
            why = "its metadata decides" if found.by_metadata else f"'data.val_fraction' is {config.val_fraction:g}"
            count = sum(map(len, found.sides.values()))
            raise DataError(f"{self._root}: no image is left for the split '{split}': the folder has {count} and {why}")

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of names, captions, labels, contents and resolution.

        Every file is read.
        """
        digest = hashlib.sha256(f"folder/{FOLDER_VERSION}/{self.resolution}/{self.classes}".encode())
        contents: dict[str, str] = {}
        for entry in self._entries:
            if entry.file not in contents:
                contents[entry.file] = hashlib.sha256((self._root / entry.file).read_bytes()).hexdigest()
            digest.update(repr((entry.file, entry.caption, entry.label, contents[entry.file])).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self._entries):
            raise IndexError(f"item {i} of {len(self._entries)}")
        entry = self._entries[i]
        image = load_square(self._root / entry.file, self.resolution)
        return Sample(image, entry.caption, label_number(entry, self.classes), {"file": entry.file})


@dataclass(frozen=True)
class Split:
    """A folder's images by split, each in the order of their hashes."""

    classes: tuple[str, ...]
    sides: Mapping[str, list[CaptionedFile]]  # "train" and "val"
    by_metadata: bool


def split_folder(root: Path, seed: int, val_fraction: float) -> Split:
    """Read captions, check the images and split them.

    Args:
        root: the folder.
        seed: random seed of the split.
        val_fraction: share of the images held out, in (0, 1). Like `seed`, it is unused if metadata decides the split.

    Returns:
        The images by split.

    Raises:
        DataError: if something is missing or broken; the message names the files.
    """
    entries = read_captions(root)
    _check_images(root, sorted({entry.file for entry in entries}))
    by_metadata = _held_out_by_metadata(root, entries)
    sides = {split: _split(entries, split, seed, val_fraction, by_metadata) for split in SPLIT_NAMES}
    return Split(_classes(root, entries), sides, by_metadata is not None)


def label_number(entry: CaptionedFile, classes: Sequence[str]) -> int:
    """Return the index of an image's class, -1 if unknown.

    Args:
        entry: the image.
        classes: the names of all classes.
    """
    if isinstance(entry.label, str):
        return list(classes).index(entry.label)
    return -1 if entry.label is None else entry.label


def _check_images(root: Path, files: list[str]) -> None:
    """Check sizes and headers of all files, to report broken ones before training."""
    absent = [file for file in files if not os.path.isfile(root / file)]  # Path.is_file raises for an overlong name
    if absent:
        raise DataError(f"{root}: captions name {len(absent)} images that do not exist: {shorten_list(absent)}")
    empty = [file for file in files if (root / file).stat().st_size == 0]
    if empty:
        raise DataError(f"{root}: {len(empty)} images are empty files: {shorten_list(empty)}")
    faults = {file: fault for file in files if (fault := header_fault(root / file))}
    if faults:
        raise DataError(
            f"{root}: {len(faults)} files can't be read as images ({', '.join(FORMATS)}): "
            f"{shorten_list(list(faults))}; the first: {next(iter(faults.values()))}"
        )


def _classes(root: Path, entries: list[CaptionedFile]) -> tuple[str, ...]:
    labels = {entry.label for entry in entries} - {None}
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(str(label) for label in labels))
    highest = max((label for label in labels if isinstance(label, int)), default=0)
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{root}: the label {highest:,} is too large; numbers of classes go from 0 to {MAX_CLASSES - 1:,}"
        )
    if all(isinstance(label, int) for label in labels):
        return tuple(str(index) for index in range(max(int(label) for label in labels if label is not None) + 1))
    raise DataError(f"{root}: some labels are numbers and some are names: {shorten_list(sorted(map(repr, labels)))}")


def _held_out_by_metadata(root: Path, entries: list[CaptionedFile]) -> set[str] | None:
    """Return the files that the metadata holds out; None if it has no splits."""
    sides: dict[str, set[str | None]] = {}
    for entry in entries:
        sides.setdefault(entry.file, set()).add(entry.split)
    if all(found == {None} for found in sides.values()):
        return None
    missing = [file for file, found in sides.items() if None in found]
    if missing:
        raise DataError(f"{root}: only some images have a 'split': it is missing for {shorten_list(missing)}")
    both = [file for file, found in sides.items() if len(found) > 1]
    if both:
        raise DataError(f"{root}: {len(both)} images are in two splits: {shorten_list(both)}")
    return {file for file, found in sides.items() if found == {"val"}}


def _split(
    entries: list[CaptionedFile], split: str, seed: int, val_fraction: float, by_metadata: set[str] | None
) -> list[CaptionedFile]:
    rank = {file: hash_to_unit_interval(seed, file) for file in {entry.file for entry in entries}}
    held_out = by_metadata
    if held_out is None:
        held_out = {file for file, place in rank.items() if place < val_fraction}
    if not held_out and by_metadata is None and len(rank) > 1:
        # In a small folder no hash may be below the fraction; val has at least one image.
        held_out = {min(rank, key=lambda file: rank[file])}
    chosen = [entry for entry in entries if (entry.file in held_out) == (split == "val")]
    return sorted(chosen, key=lambda entry: rank[entry.file])
