"""Store the features of captions once per distinct caption, memory-mapped.

A store belongs to one text encoder. Files are only added to it, so datasets, runs and processes can share it, and
interrupted encoding resumes. M captions, S tokens, Y width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from microdit.common.errors import DataError, shown
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import read_signed, signed
from microdit.common.files.verified import find_damaged, read_verified
from microdit.data.latents.shards import REMEDY, SUFFIX, ConcatArray, Shard, check_shard, open_shard, write_shard
from microdit.encoders.text import TextEncoder
from microdit.model.conditioning import Captions, round_to_half, unpack, with_mask

log = logging.getLogger(__name__)

FORMAT = "microdit-captions-1"
HEADER, PREFIX = "header.json", "captions-"  # a store's folder is PREFIX and 12 digits of its encoder's digest
FILE_BYTES = 512 << 20  # approximate size of a file's features; twice as much is in memory while it is written


class CaptionFeatures(Protocol):
    """Provide the caption features of N images."""

    def take(self, images: np.ndarray) -> Captions:
        """Return the caption features of a batch.

        Args:
            images: (B,) int, indices from 0 to N - 1.

        Returns:
            (B, S, Y) float16 or float32, with a mask if the text encoder has one.
        """


def digest(caption: str) -> int:
    """Return a 64-bit hash of a caption.

    The probability that any two of 10 million captions collide is about 3e-6.
    """
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "little")


def digests(captions: Sequence[str]) -> np.ndarray:
    """Return the hashes of M captions.

    Returns:
        (M,) uint64.
    """
    return np.array([digest(caption) for caption in captions], np.uint64)


def store_name(fingerprint: str) -> str:
    """Return the folder name of a text encoder's store."""
    return PREFIX + hashlib.sha256(fingerprint.encode()).hexdigest()[:12]


class CaptionStore:
    """An opened store of caption features.

    Args:
        folder: the store's folder.

    Raises:
        DataError: if a file is truncated, or the folder is not a store.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.header: Mapping[str, Any] = read_verified(folder / HEADER)
            kind, sizes = self.header["format"], (self.header["length"], self.header["width"])
        except KeyError as error:
            raise DataError(f"{folder / HEADER}: {error} is missing") from None
        if kind != FORMAT:
            raise DataError(f"{folder / HEADER}: its format is {shown(kind)}, not '{FORMAT}'")
        if not all(type(size) is int and 0 < size < 1 << 20 for size in sizes):
            raise DataError(
                f"{folder / HEADER}: 'length' and 'width' are {shown(sizes)}; they must be sizes below 1,048,576"
            )
        self.folder = folder
        self._shards: list[Shard] = [open_shard(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
        for shard in self._shards:
            if shard["features"].shape[1:] != sizes:
                raise DataError(f"{shard.path}: features {shard['features'].shape}, but {folder / HEADER} has {sizes}")
        self._index()

    def _index(self) -> None:
        shape = (0, self.header["length"], self.header["width"])
        shards = self._shards
        self._features = ConcatArray([shard["features"] for shard in shards] or [np.zeros(shape, np.float16)])
        self._masks = ConcatArray(
            [shard["mask"] for shard in shards if "mask" in shard.tensors] or [np.zeros(0, np.bool_)]
        )
        known = [shard["digests"] for shard in shards] or [np.zeros(0, np.uint64)]
        # Sorted for searching; of a caption that two processes wrote, the first row is used.
        self._digests, self._rows = np.unique(np.concatenate(known), return_index=True)

    def __len__(self) -> int:
        return len(self._digests)

    @property
    def files(self) -> list[Path]:
        """Return all files of features."""
        return [shard.path for shard in self._shards]

    def contains(self, wanted: np.ndarray) -> np.ndarray:
        """Return which captions have features.

        Args:
            wanted: (N,) uint64, the captions' digests.

        Returns:
            (N,) bool.
        """
        place = np.searchsorted(self._digests, wanted)
        inside = place < len(self._digests)
        inside[inside] = self._digests[place[inside]] == wanted[inside]
        return inside

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """Return the rows of captions in the store.

        Args:
            wanted: (N,) uint64, the captions' digests.

        Returns:
            (N,) int64.

        Raises:
            DataError: if a caption has no features.
        """
        absent = int((~self.contains(wanted)).sum())
        if absent:
            raise DataError(f"{self.folder}: {absent} captions have no features; encode the data again with --captions")
        return self._rows[np.searchsorted(self._digests, wanted)]

    def take(self, rows: np.ndarray) -> Captions:
        """Return the features of some captions.

        Args:
            rows: (B,) int64, as `rows` returns them.

        Returns:
            (B, S, Y) float16, with a mask if the text encoder has one.
        """
        features = torch.from_numpy(self._features.take(rows))
        return with_mask(features, torch.from_numpy(self._masks.take(rows)) if len(self._masks) else None)

    def add(self, captions: Sequence[str], features: np.ndarray, mask: np.ndarray | None) -> None:
        """Write the features of new captions as one file.

        Args:
            captions: M captions.
            features: (M, S, Y); stored as float16.
            mask: (M, S), True for text tokens; None if the text encoder has no mask.

        Raises:
            DataError: if a feature is not finite in half precision.
        """
        tensors = {"features": features.astype(np.float16, copy=False), "digests": digests(captions)}
        if mask is not None:
            tensors["mask"] = mask.astype(np.bool_)
        if not np.isfinite(tensors["features"]).all():
            worst = int(np.flatnonzero(~np.isfinite(tensors["features"]).all(axis=(1, 2)))[0])
            raise DataError(f"the text encoder gives NaN or infinity in half precision for '{captions[worst][:200]}'")
        self._shards.append(open_shard(write_shard(self.folder, "", tensors, {})))
        self._index()


def create_store(folder: Path, header: Mapping[str, Any], memory: Path | None = None) -> CaptionStore:
    """Open the store in `folder`, or create it.

    Damaged files are logged and removed; the caller encodes their captions again.

    Args:
        folder: the store's folder.
        header: `fingerprint`, `length` and `width` of the text encoder.
        memory: folder that records which files were verified; None verifies all.

    Returns:
        The store of this text encoder.
    """
    path = folder / HEADER
    if not _is_header(path, header):
        if path.exists():
            log.warning("%s: damaged, or of another text encoder; written again", path)
        write_text(path, signed({"format": FORMAT, **header}))
    shape = (header["length"], header["width"])
    for bad, why in find_damaged(sorted(folder.glob(f"*{SUFFIX}")), partial(_check, shape=shape), memory, str(shape)):
        log.warning("%s; its captions are encoded again", why.removesuffix(f"; {REMEDY}"))
        bad.unlink(missing_ok=True)
    return CaptionStore(folder)


def _is_header(path: Path, header: Mapping[str, Any]) -> bool:
    try:
        found = read_signed(path, optional=True)
    except (OSError, ValueError):
        return False
    keys = ("fingerprint", "length", "width")
    return found.get("format") == FORMAT and [found.get(key) for key in keys] == [header[key] for key in keys]


def _check(path: Path, shape: tuple[int, int]) -> None:
    """Raise DataError if a file of features is damaged or has other sizes."""
    check_shard(path)
    shard = open_shard(path)
    found = shard["features"].shape
    if found[1:] != shape or shard["digests"].shape != found[:1]:
        raise DataError(f"{path}: its features are {found}, not (M, {shape[0]}, {shape[1]})")


def text_header(encoder: TextEncoder, **more: Any) -> dict[str, Any]:
    """Return the header of a text encoder's store.

    Args:
        encoder: the text encoder.
        more: further entries.
    """
    return {"fingerprint": encoder.fingerprint, "length": encoder.length, "width": encoder.width, **more}


def encode_captions(store: CaptionStore, captions: Iterable[str], encoder: TextEncoder, batch_size: int = 256) -> int:
    """Encode the captions that are missing from `store`, one file at a time.

    Args:
        store: the store to add to.
        captions: may repeat and may include stored ones.
        encoder: the store's text encoder.
        batch_size: captions per call of the encoder.

    Returns:
        How many captions were encoded.
    """
    size = max(batch_size, FILE_BYTES // (2 * encoder.length * encoder.width))
    fresh, count = _unknown(store, captions), 0
    while chunk := list(islice(fresh, size)):
        features, masks = np.zeros((len(chunk), encoder.length, encoder.width), np.float16), []
        for start in range(0, len(chunk), batch_size):
            encoded, mask = unpack(encoder.encode(chunk[start : start + batch_size]))
            features[start : start + batch_size] = encoded.half().cpu().numpy()
            masks += [] if mask is None else [mask.cpu().numpy()]
        store.add(chunk, features, np.concatenate(masks) if masks else None)
        count += len(chunk)
    return count


def _unknown(store: CaptionStore, captions: Iterable[str]) -> Iterator[str]:
    """Yield each caption without features once, in order."""
    begun: set[int] = set()  # digests of the captions yielded so far, written or not
    for caption in captions:
        number = digest(caption)
        if number not in begun and not store.contains(np.array([number], np.uint64))[0]:
            begun.add(number)
            yield caption


class StoredCaptions(CaptionFeatures):
    """Caption features of N images, read from a store.

    Args:
        store: the store.
        wanted: (N,) uint64, the digests of the images' captions.

    Raises:
        DataError: if a caption has no features.
    """

    def __init__(self, store: CaptionStore, wanted: np.ndarray) -> None:
        self.store = store
        self.rows = store.rows(wanted)  # (N,) int64

    def take(self, images: np.ndarray) -> Captions:
        return self.store.take(self.rows[images])


class CaptionsPerBatch(CaptionFeatures):
    """Caption features encoded at every step, without a store."""

    def __init__(self, encoder: TextEncoder, caption_of: Callable[[int], str]) -> None:
        self._encoder, self._caption_of = encoder, caption_of

    def take(self, images: np.ndarray) -> Captions:
        return round_to_half(self._encoder.encode([self._caption_of(int(i)) for i in images]))
