"""Images and captions, encoded once: latents and caption features in memory-mapped arrays, shared by all runs.

A cache folder is named by what determines its content (data, autoencoder and text-encoder fingerprints), is written
under a lock and renamed into place whole, and is then only read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from microdit.alignment.targets import NoTargets, PatchTargets
from microdit.data.base import CaptionedImages
from microdit.encoders.autoencoder import Autoencoder
from microdit.encoders.text import TextEncoder
from microdit.files import atomic_path
from microdit.model.captions import Captions, parts, with_mask
from microdit.rng import generator

FORMAT = "encoded-1"
MASK = "mask.npy"  # only where the text encoder tells padding from tokens


@dataclass(frozen=True)
class EncodedDataset:
    """N captioned images as the network sees them; M different captions, features stored once each."""

    latents: np.ndarray  # (N, C, h, w) float16, memory-mapped
    features: np.ndarray  # (M, S, Y) float16, memory-mapped
    caption_ids: np.ndarray  # (N,) int64 into features
    captions: tuple[str, ...]  # (M,)
    labels: np.ndarray  # (N,) int64, -1 where unknown
    sigma_data: float  # standard deviation over all latent values
    fingerprint: str
    targets: PatchTargets | NoTargets = field(default_factory=NoTargets)  # what hidden tokens are aligned with
    mask: np.ndarray | None = None  # (M, S) bool, False where a caption is padding; None: all tokens count

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Captions]:
        """Latents (B, C, h, w) and caption features (B, S, Y) in float32, masked if the text encoder masks them."""
        latents = torch.from_numpy(self.latents[indices].astype(np.float32))
        rows = self.caption_ids[indices]
        features = torch.from_numpy(self.features[rows].astype(np.float32))
        return latents, with_mask(features, None if self.mask is None else torch.from_numpy(self.mask[rows]))

    def caption(self, index: int) -> str:
        """The caption of image `index`."""
        return self.captions[int(self.caption_ids[index])]


def encode_dataset(
    dataset: CaptionedImages,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    cache_dir: Path | str,
    batch_size: int = 64,
) -> EncodedDataset:
    """Encodes `dataset`, or opens what an earlier call with the same content left in `cache_dir`."""
    identity = "/".join([FORMAT, dataset.fingerprint, autoencoder.fingerprint, text_encoder.fingerprint])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = Path(cache_dir) / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                _write(dataset, autoencoder, text_encoder, temporary, batch_size)
    return _open(folder, key)


def _write(
    dataset: CaptionedImages, autoencoder: Autoencoder, text_encoder: TextEncoder, folder: Path, batch_size: int
) -> None:
    text_encoder.encode([""])  # weights that can't be loaded are found here, before the pictures' long work
    captions: dict[str, int] = {}
    caption_ids = np.zeros(len(dataset), np.int64)
    labels = np.zeros(len(dataset), np.int64)
    side = dataset.resolution // autoencoder.downsampling
    shape = (len(dataset), autoencoder.channels, side, side)
    latents = np.lib.format.open_memmap(folder / "latents.npy", "w+", np.float16, shape)
    total, squares = 0.0, 0.0
    for chunk in _chunks(len(dataset), batch_size):
        items = [dataset[i] for i in chunk]
        images = torch.from_numpy(np.stack([item.image for item in items]))
        encoded = autoencoder.encode(images)
        latents[chunk.start : chunk.stop] = encoded.half().cpu().numpy()
        total += encoded.double().sum().item()
        squares += encoded.double().square().sum().item()
        for i, item in zip(chunk, items, strict=True):
            caption_ids[i] = captions.setdefault(item.caption, len(captions))
            labels[i] = item.label
    latents.flush()
    _write_features(list(captions), text_encoder, folder, batch_size)
    np.save(folder / "caption_ids.npy", caption_ids)
    np.save(folder / "labels.npy", labels)
    count = float(np.prod(shape))
    header = {
        "sigma_data": float(np.sqrt(squares / count - (total / count) ** 2)),
        "captions": list(captions),
        "data": dataset.fingerprint,
        "autoencoder": autoencoder.fingerprint,
        "text": text_encoder.fingerprint,
    }
    (folder / "header.json").write_text(json.dumps(header, ensure_ascii=False), encoding="utf-8")


def _write_features(captions: list[str], text_encoder: TextEncoder, folder: Path, batch_size: int) -> None:
    shape = (len(captions), text_encoder.length, text_encoder.width)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    masks = []
    for chunk in _chunks(len(captions), 4 * batch_size):
        encoded, mask = parts(text_encoder.encode(captions[chunk.start : chunk.stop]))
        features[chunk.start : chunk.stop] = encoded.half().cpu().numpy()
        masks += [] if mask is None else [mask.cpu().numpy()]
    features.flush()
    if masks:
        np.save(folder / MASK, np.concatenate(masks))


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _open(folder: Path, key: str) -> EncodedDataset:
    header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    return EncodedDataset(
        latents=np.load(folder / "latents.npy", mmap_mode="r"),
        features=np.load(folder / "features.npy", mmap_mode="r"),
        caption_ids=np.load(folder / "caption_ids.npy"),
        captions=tuple(header["captions"]),
        labels=np.load(folder / "labels.npy"),
        sigma_data=header["sigma_data"],
        fingerprint=key,
        mask=np.load(folder / MASK) if (folder / MASK).is_file() else None,
    )


class DataOrder:
    """Which images each step sees: a fresh permutation each epoch, a function of (seed, step) alone."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of 0-based `step`; an epoch's end runs on into the next epoch's permutation."""
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
