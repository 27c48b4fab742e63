"""Read a folder of captioned images with the same splits, in the same order, as the dataset `folder`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from microdit.data.image_folder.dataset import FOLDER_VERSION, Split, label_number, split_folder
from microdit.data.images.reader import load_square
from microdit.data.latents.writer import Record, Source, chunk_ranges


class FolderSource(Source):
    """A folder's training images, followed by its held-out images.

    Args:
        root: the folder.
        resolution: side of the images in pixels.
        seed: random seed of the split, unless metadata decides it.
        val_fraction: share of the images held out, unless metadata decides it.

    Raises:
        DataError: if the folder, a caption or an image's header is missing or broken; the message names the files.
    """

    def __init__(self, root: Path, resolution: int, seed: int, val_fraction: float) -> None:
        self._root, self.resolution = root, resolution
        folder = split_folder(root, seed, val_fraction)
        self.classes = folder.classes
        train, val = folder.sides["train"], folder.sides["val"]
        self._rows = [(entry, False) for entry in train] + [(entry, True) for entry in val]
        self.description = {
            "kind": "folder",
            "path": str(root.absolute()),
            "images": len(self._rows),
            "val_fraction": val_fraction,
            "seed": seed,
            "listing": self._listing(folder),
            "reader": FOLDER_VERSION,
        }

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Record] | None]]:
        for k, rows in chunk_ranges(len(self._rows), size):
            yield k, map(self._record, rows) if wanted(k) else None

    def _record(self, i: int) -> Record:
        entry, held_out = self._rows[i]
        load = partial(load_square, self._root / entry.file, self.resolution)
        return Record(entry.file, entry.caption, label_number(entry, self.classes), held_out, load)

    def _listing(self, folder: Split) -> str:
        """Return a digest of all files' names, captions, labels and sizes, without reading the images."""
        digest = hashlib.sha256(repr(folder.classes).encode())
        for entry, held_out in self._rows:
            size = (self._root / entry.file).stat().st_size
            digest.update(repr((entry.file, entry.caption, entry.label, held_out, size)).encode())
        return digest.hexdigest()[:16]
