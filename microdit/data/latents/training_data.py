"""Encode images and captions for training, once, into memory-mapped shards.

They are encoded in advance (`microdit data encode`), or into the cache when a run starts. Both use the same files and
resume after an interruption. N images, B batch, C channels, h w latent height and width, S text tokens, Y width of the
text encoder, T E tokens and width of alignment targets.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from microdit.common.errors import DataError
from microdit.common.files.digests import read_signed
from microdit.common.files.verified import CHECKED, find_damaged
from microdit.common.rng import generator
from microdit.data.dataset import CaptionedImages
from microdit.data.latents.caption_store import (
    CaptionFeatures,
    CaptionsPerBatch,
    StoredCaptions,
    create_store,
    encode_captions,
    store_name,
    text_header,
)
from microdit.data.latents.job import ShardJob
from microdit.data.latents.reader import HEADER, INDEX, EncodedImages, open_images
from microdit.data.latents.shards import REMEDY, SUFFIX, check_shard
from microdit.data.latents.writer import AutoencoderLatents, Record, Source, chunk_ranges, write_images
from microdit.encoders.autoencoder import Autoencoder
from microdit.encoders.text import TextEncoder
from microdit.model.conditioning import Captions, map_tokens

log = logging.getLogger(__name__)

FORMAT = "encoded-2"


class Targets(Protocol):
    """Provide features of the training images that a loss term uses besides the latents."""

    @property
    def fingerprint(self) -> str:
        """Return a digest of the features' content; "" if there are none."""
        ...

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the features of a batch.

        Args:
            indices: (B,) int, the images.

        Returns:
            (B, T, E) float16 or float32.
        """
        ...


class NoTargets(Targets):
    """Targets without features: T = E = 0."""

    fingerprint = ""

    def batch(self, indices: np.ndarray) -> Tensor:
        return torch.zeros(len(indices), 0, 0)


@dataclass(frozen=True)
class EncodedDataset:
    """N captioned images as latents and caption features."""

    images: EncodedImages
    features: CaptionFeatures
    sigma_data: float  # standard deviation over all latent values
    fingerprint: str
    targets: Targets = field(default_factory=NoTargets)  # features that hidden tokens are aligned with

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> np.ndarray:
        """Return the class index of each image.

        Returns:
            (N,) int64, -1 if unknown.
        """
        return self.images.labels

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all latents.

        Returns:
            (N, C, h, w).
        """
        return self.images.shape

    def with_features(self, features: CaptionFeatures) -> EncodedDataset:
        """Return the same images with other caption features."""
        return replace(self, features=features)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Captions]:
        """Return the latents and caption features of some images.

        Args:
            indices: (B,) int, from 0 to N - 1.

        Returns:
            Latents (B, C, h, w) and caption features (B, S, Y), float32; features with a mask if the text encoder has
            one.
        """
        latents = torch.from_numpy(self.images.take(indices).astype(np.float32))
        return latents, map_tokens(Tensor.float, self.features.take(indices))

    def stored(self, indices: np.ndarray) -> tuple[Tensor, Captions, Tensor]:
        """Return latents, caption features and targets of some images as they are stored.

        The copy to a GPU is smaller than with `batch`, and the values are the same.

        Args:
            indices: (B,) int, from 0 to N - 1.

        Returns:
            Latents (B, C, h, w) float16, caption features (B, S, Y) float16 (float32 without a store), and targets
            (B, T, E).
        """
        return torch.from_numpy(self.images.take(indices)), self.features.take(indices), self.targets.batch(indices)

    def caption(self, index: int) -> str:
        """Return the caption of an image.

        Args:
            index: from 0 to N - 1.
        """
        return self.images.caption(index)


def data_fingerprint(train: EncodedDataset, val: EncodedDataset) -> str:
    """Return 16 hex digits that identify all data a run reads.

    Args:
        train: latents, captions and targets of the training split.
        val: latents and captions of the held-out split.
    """
    return _key(train.fingerprint, val.fingerprint, train.targets.fingerprint)


def encode_dataset(
    dataset: CaptionedImages,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    cache_dir: Path | str,
    store_captions: bool = True,
    job: ShardJob | None = None,
) -> EncodedDataset:
    """Encode `dataset`, or open the result of an earlier call with the same content.

    Args:
        dataset: captioned images.
        autoencoder: encodes the images.
        text_encoder: encodes the captions.
        cache_dir: where encoded data is kept.
        store_captions: keep caption features; otherwise each batch's captions are encoded.
        job: how shards are written.

    Returns:
        The encoded images, in the order of `dataset`.
    """
    job = job or ShardJob(round_trips=0)
    folder = Path(cache_dir) / _key(dataset.fingerprint, autoencoder.fingerprint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        _discard_damaged(folder, Path(cache_dir) / CHECKED)
        if not (folder / INDEX).is_file():
            text_encoder.encode([""])  # loads the weights before the long work on images
            encoder = AutoencoderLatents(autoencoder, dataset.resolution, "")
            write_images(DatasetSource(dataset), encoder, folder, job)
    images = open_images(folder)
    return with_captions(images, None, text_encoder, Path(cache_dir), store_captions)


def _discard_damaged(folder: Path, memory: Path) -> None:
    """Remove damaged files of a cache folder, so that they are encoded again; log one line."""
    bad = find_damaged(sorted(folder.glob(f"*{SUFFIX}")), check_shard, memory)
    for name in (INDEX, HEADER):
        try:
            read_signed(folder / name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            bad.append((folder / name, f"{folder / name}: {error}"))
    if not bad and (folder / INDEX).is_file():
        try:
            open_images(folder)
        except DataError as error:  # a file is missing or inconsistent
            bad.append((folder / INDEX, str(error)))
    if bad:
        log.warning("%s; encoded again (%d files)", bad[0][1].removesuffix(f"; {REMEDY}"), len(bad))
    for path in {*(path for path, _ in bad), *([folder / INDEX] if bad else [])}:
        path.unlink(missing_ok=True)


def with_captions(
    images: EncodedImages, split: str | None, text_encoder: TextEncoder, cache_dir: Path, store_captions: bool = True
) -> EncodedDataset:
    """Add caption features from the cache's store, encoding those that are missing.

    Args:
        images: the encoded images.
        split: the split they are of; None if they are all images of their folder.
        text_encoder: encodes the captions.
        cache_dir: folder of the cache.
        store_captions: keep caption features; otherwise each batch's captions are encoded when it is drawn.

    Returns:
        The images with their caption features.
    """
    fingerprint = _key(images.index["fingerprint"], str(split), str(len(images)), text_encoder.fingerprint)
    features: CaptionFeatures
    if store_captions:
        folder = cache_dir / store_name(text_encoder.fingerprint)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            store = create_store(folder, text_header(text_encoder), cache_dir / CHECKED)
            if not store.contains(images.digests).all():
                encode_captions(store, (images.caption(i) for i in range(len(images))), text_encoder)
        features = StoredCaptions(store, images.digests)
    else:
        features = CaptionsPerBatch(text_encoder, images.caption)
    return EncodedDataset(images, features, images.sigma_data(split), fingerprint)


def _key(*parts: str) -> str:
    return hashlib.sha256("/".join([FORMAT, *parts]).encode()).hexdigest()[:16]


class DatasetSource(Source):
    """One split of a dataset as a source of images to encode."""

    def __init__(self, dataset: CaptionedImages) -> None:
        self.resolution, self.classes = dataset.resolution, dataset.classes
        self.description = {"fingerprint": dataset.fingerprint}
        self._dataset = dataset

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Record] | None]]:
        for k, rows in chunk_ranges(len(self._dataset), size):
            yield k, map(self._record, rows) if wanted(k) else None

    def _record(self, i: int) -> Record:
        item = self._dataset[i]
        return Record(str(item.attributes.get("file", i)), item.caption, item.label, False, lambda: item.image)


class BatchSampler:
    """Choose the images of each step as a function of (seed, step) alone.

    Each epoch has a new permutation.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """Return the indices (batch_size,) int64 of a step, counted from 0; a batch may span two epochs."""
        position = step * self.batch_size
        parts: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            epoch, offset = divmod(position, self.count)
            part = self._of_epoch(epoch)[offset : offset + missing]
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return np.concatenate(parts)

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).numpy()
            self._epoch = epoch
        return self._permutation
