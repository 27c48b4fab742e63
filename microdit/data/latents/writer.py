"""Write folders of encoded images, shard by shard, in one or several processes.

A later call resumes an earlier one. With n images per shard, shard k has the source's images k n to (k + 1) n - 1
whichever process writes it, so processes need no communication. B batch, C latent channels, s latent size, H W height
and width of images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from microdit.common.errors import ConfigError, DataError
from microdit.common.files.atomic import sweep, write_text
from microdit.common.files.digests import signed
from microdit.common.files.verified import read_verified
from microdit.common.parsing import flatten
from microdit.data.latents.caption_store import digests
from microdit.data.latents.job import ShardJob
from microdit.data.latents.reader import FORMAT, HEADER, INDEX, SPLITS, sigma_of
from microdit.data.latents.shards import DIGEST_DIGITS, SUFFIX, open_shard, pack, write_shard
from microdit.encoders.autoencoder import Autoencoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One image of a source, not read yet."""

    key: str  # its name in the source
    caption: str
    label: int  # -1 if unknown
    held_out: bool
    load: Callable[[], np.ndarray]  # -> (H, W, 3) uint8, or (C, s, s) float16 if the source has latents


class Source(Protocol):
    """Provide images in an order that is the same every time."""

    resolution: int  # side of the images, pixels
    classes: tuple[str, ...]
    description: Mapping[str, Any]  # JSON that identifies the dataset

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Record] | None]]:
        """Split the images into chunks.

        Args:
            size: images per chunk; the last may have fewer.
            wanted: whether the chunk of this number is needed.

        Yields:
            Number of each chunk, from 0, and its records, or None if it is not wanted.
        """
        ...


def chunk_ranges(count: int, size: int) -> Iterator[tuple[int, range]]:
    """Split rows into chunks.

    Args:
        count: number of rows.
        size: rows per chunk; the last may have fewer.

    Yields:
        Number and rows of each chunk.
    """
    for k, start in enumerate(range(0, count, size)):
        yield k, range(start, min(start + size, count))


class Latents(Protocol):
    """Convert records to latents."""

    shape: tuple[int, int, int]  # (C, s, s)
    header: Mapping[str, Any]  # JSON that describes the autoencoder

    def encode(self, loaded: list[np.ndarray]) -> Tensor:
        """Return the latents of a batch.

        Args:
            loaded: what `Record.load` returned for B images.

        Returns:
            (B, C, s, s) float32.
        """
        ...

    def error(self, loaded: list[np.ndarray], latents: Tensor) -> list[float]:
        """Measure the round trip through the autoencoder.

        Args:
            loaded: what `Record.load` returned for B images.
            latents: (B, C, s, s), what `encode` returned for them.

        Returns:
            Mean squared error of each image, with pixels from 0 to 1; empty if it can't be measured.
        """
        ...


class AutoencoderLatents(Latents):
    """Latents encoded by an autoencoder.

    Args:
        autoencoder: encodes and decodes.
        resolution: side of the images in pixels.
        path: name or folder of the autoencoder, which the header records.

    Raises:
        ConfigError: if the resolution is no multiple of the downsampling factor.
    """

    def __init__(self, autoencoder: Autoencoder, resolution: int, path: str) -> None:
        if resolution % autoencoder.downsampling:
            raise ConfigError(
                f"the resolution is {resolution}; the autoencoder needs a multiple of {autoencoder.downsampling}"
            )
        side = resolution // autoencoder.downsampling
        self.shape = (autoencoder.channels, side, side)
        self.header = {"path": path, **autoencoder.describe()}
        self._autoencoder = autoencoder

    def encode(self, loaded: list[np.ndarray]) -> Tensor:
        return self._autoencoder.encode(torch.from_numpy(np.stack(loaded))).float().cpu()

    def error(self, loaded: list[np.ndarray], latents: Tensor) -> list[float]:
        back = self._autoencoder.decode(latents.half().float()).cpu().float() / 255
        wanted = torch.from_numpy(np.stack(loaded)).float() / 255
        return [float(value) for value in (back - wanted).square().mean((1, 2, 3))]


@dataclass
class EncodingStats:
    """Counts and times of one process."""

    images: int = 0
    seconds: float = 0.0
    shards: int = 0
    missing: list[int] = field(default_factory=list)  # shards that other processes have not written yet


def write_images(
    source: Source, latents: Latents, folder: Path, job: ShardJob, report: Callable[[str], None] = log.info
) -> EncodingStats:
    """Write this process's missing shards, and the index when all exist.

    Args:
        source: the images.
        latents: how they are encoded.
        folder: where shards and index are written.
        job: which shards this process writes.
        report: called with a line of progress per shard.

    Returns:
        What this process did.

    Raises:
        ConfigError: if the folder was begun with other settings.
        DataError: if there are no images, one is broken, or latents are not finite; finished shards stay.
    """
    sweep(folder, depth=1)
    _write_or_check_header(source, latents, folder, job)
    tally, count, began, there = EncodingStats(), 0, time.monotonic(), existing_shards(folder)

    def wanted(k: int) -> bool:
        return k % job.parts == job.part and k not in there

    for k, records in source.chunks(job.shard_size, wanted):
        count = k + 1
        if records is not None:
            tally.images += _write_one(k, records, latents, folder, job)
            tally.shards += 1
            tally.seconds = time.monotonic() - began
            report(f"shard {k}: {tally.images:,} images so far, {tally.images / tally.seconds:.1f} per second")
    if not count:
        raise DataError(f"the source has no images: {json.dumps(source.description, ensure_ascii=False)[:300]}")
    there = existing_shards(folder)
    tally.missing = [k for k in range(count) if k not in there]
    if not tally.missing:
        _finish(folder, [there[k] for k in range(count)])
    return tally


def _write_or_check_header(source: Source, latents: Latents, folder: Path, job: ShardJob) -> None:
    """Write the header, or check it against the existing one."""
    header = {
        "format": FORMAT,
        "resolution": source.resolution,
        "latents": {"shape": list(latents.shape), "dtype": "float16"},
        "autoencoder": dict(latents.header),
        "source": dict(source.description),
        "classes": list(source.classes),
        "shard_size": job.shard_size,
        "skip_broken": job.skip_broken,
    }
    path = folder / HEADER
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, signed(header))
        return
    try:
        there = read_verified(path)
    except DataError as error:
        raise DataError(f"{error}; choose another --out") from None
    for key, value in flatten(json.loads(json.dumps(header))).items():
        found = flatten(there).get(key)
        if found != value and key not in ("autoencoder.path", "source.path"):  # the same content may be at another path
            raise ConfigError(
                f"{folder} was begun with {key} {found!r}, and now it is {value!r}: give the same settings to resume, "
                "or another --out"
            )


def existing_shards(folder: Path) -> dict[int, Path]:
    """Return the existing image shards by number, of a finished folder or not."""
    found = sorted(folder.glob(f"[0-9]*-*{SUFFIX}"), reverse=True)  # of two files of one number the first is used
    return {int(path.name.partition("-")[0]): path for path in found}


def _write_one(k: int, records: Iterator[Record], latents: Latents, folder: Path, job: ShardJob) -> int:
    kept: list[Record] = []
    arrays: list[np.ndarray] = []
    errors: list[float] = []
    skipped: list[str] = []
    statistics = _no_statistics()
    while batch := list(islice(records, job.batch_size)):
        good, loaded = _load(batch, skipped, job.skip_broken)
        if not good:
            continue
        found = latents.encode(loaded)
        half = found.half()
        _check_finite(good, half)
        _count(statistics, good, found)
        missing = max(job.round_trips - len(errors), 0)
        if missing:
            errors += latents.error(loaded[:missing], found[:missing])
        arrays.append(half.numpy())
        kept += good
    stacked = np.concatenate(arrays) if arrays else np.zeros((0, *latents.shape), np.float16)
    captions, caption_ends = pack([record.caption for record in kept])
    keys, key_ends = pack([record.key for record in kept])
    tensors = {
        "latents": stacked,
        "labels": np.array([record.label for record in kept], np.int64),
        "held_out": np.array([record.held_out for record in kept], np.bool_),
        "digests": digests([record.caption for record in kept]),
        **{"captions": captions, "captions_ends": caption_ends, "keys": keys, "keys_ends": key_ends},
    }
    write_shard(folder, f"{k:06d}-", tensors, {"statistics": statistics, "errors": errors, "skipped": skipped})
    return len(kept)


def _load(batch: Sequence[Record], skipped: list[str], skip_broken: bool) -> tuple[list[Record], list[np.ndarray]]:
    good: list[Record] = []
    loaded: list[np.ndarray] = []
    for record in batch:
        try:
            loaded.append(record.load())
        except DataError:
            if not skip_broken:
                raise
            skipped.append(record.key)
        else:
            good.append(record)
    return good, loaded


def _check_finite(records: Sequence[Record], latents: Tensor) -> None:
    bad = np.flatnonzero(~np.isfinite(latents.numpy()).all((1, 2, 3)))
    if len(bad):
        names = ", ".join(records[int(i)].key for i in bad[:3])
        raise DataError(
            f"the latents of {len(bad)} images are NaN or beyond half precision, such as {names}: does the autoencoder "
            "overflow in 'autoencoder.precision' fp16, or is its scaling_factor wrong?"
        )


def _no_statistics() -> dict[str, dict[str, Any]]:
    return {split: {"images": 0, "values": 0, "sum": 0.0, "squares": 0.0} for split in SPLITS}


def _count(statistics: dict[str, dict[str, Any]], records: Sequence[Record], latents: Tensor) -> None:
    held_out = torch.tensor([record.held_out for record in records])
    for split, rows in (("train", ~held_out), ("val", held_out)):
        values, into = latents[rows].double(), statistics[split]
        into["images"] += len(values)
        into["values"] += values.numel()
        into["sum"] += values.sum().item()
        into["squares"] += values.square().sum().item()


def _finish(folder: Path, paths: Sequence[Path]) -> None:
    """Write the index of all shards."""
    statistics = _no_statistics()
    errors: list[float] = []
    skipped: list[str] = []
    entries = []
    for path in paths:
        shard = open_shard(path)
        for split, into in statistics.items():
            for key, value in shard.facts["statistics"][split].items():
                into[key] += value
        errors += shard.facts["errors"]
        skipped += shard.facts["skipped"]
        size = path.stat().st_size
        entry = {"file": path.name, "count": len(shard["labels"]), "bytes": size}
        entries.append(entry | {"sha256": path.stem[-DIGEST_DIGITS:]})
    header = read_verified(folder / HEADER)
    index = header | {
        "fingerprint": hashlib.sha256(json.dumps([FORMAT, *entries]).encode()).hexdigest(),
        "statistics": statistics,
        "sigma_data": {split: sigma_of(statistics, split) for split in SPLITS},
        "round_trip": {"psnr_db": _psnr(errors), "images": len(errors)},
        "skipped": skipped,
        "shards": entries,
    }
    write_text(folder / INDEX, signed(index))


def _psnr(errors: Sequence[float]) -> float | None:
    """Return the mean PSNR of the lossy images in dB; None if there are none."""
    lossy = [error for error in errors if error > 0]
    return float(np.mean([-10 * np.log10(error) for error in lossy])) if lossy else None
