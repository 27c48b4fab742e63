"""Compute and store the patch features that hidden tokens are aligned with.

They are computed once from the clean images and then memory-mapped: 2 N T E bytes. The name of a cache folder depends
on data, encoder and grid. The folder is written under a lock, renamed into place when complete, and only read
afterwards. N images, B batch, T patches, E features of a patch.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.patch_encoders import PatchEncoder, build_encoder
from microdit.common.errors import ConfigError, DataError
from microdit.common.files.atomic import atomic_path
from microdit.common.files.digests import file_digest, read_signed, signed
from microdit.common.files.verified import CHECKED, find_damaged
from microdit.data.dataset import CaptionedImages, HasOriginals
from microdit.data.latents.training_data import NoTargets

log = logging.getLogger(__name__)

FORMAT = "patches-1"
FEATURES, HEADER = "features.npy", "header.json"
IMAGES_PER_PASS = 64


@dataclass(frozen=True)
class PatchTargets:
    """Hold the features of each patch of each training image."""

    features: np.ndarray  # (N, T, E) float16, memory-mapped
    fingerprint: str  # of the images, the encoder and the grid

    def batch(self, indices: np.ndarray) -> Tensor:
        """Return the features of some images.

        Args:
            indices: (B,) integers in [0, N).

        Returns:
            (B, T, E) float16.
        """
        return torch.from_numpy(self.features[indices])


def build_alignment_features(
    config: AlignmentConfig, side: int, images: CaptionedImages, device: torch.device | str, cache_dir: Path
) -> PatchTargets | NoTargets:
    """Open or compute the features that `config` aligns with.

    Args:
        config: names the encoder.
        side: patches per side.
        images: training images.
        device: where the encoder runs.
        cache_dir: where features are stored.

    Returns:
        Features of all images, or `NoTargets` if there is no alignment.

    Raises:
        ConfigError: as `encode_targets`, or if the encoder's weights are missing.
    """
    encoder = build_encoder(config, side, device)
    return encode_targets(images, encoder, cache_dir, cache_dir.parent / CHECKED) if encoder.width else NoTargets()


def encode_targets(
    images: CaptionedImages, encoder: PatchEncoder, cache_dir: Path, memory: Path | None = None
) -> PatchTargets:
    """Encode images, or open the stored features of the same images and encoder.

    Args:
        images: training images.
        encoder: computes the features.
        cache_dir: where features are stored.
        memory: file that records which stored files were verified; None verifies them in every process.

    Returns:
        Features of all images.

    Raises:
        ConfigError: if the encoder returns another shape than declared, or values beyond half precision.
    """
    identity = {"data": images.fingerprint, "encoder": encoder.fingerprint, "side": encoder.side}
    if isinstance(images, HasOriginals) and images.originals_state():
        identity["originals"] = images.originals_state()
    key = hashlib.sha256("/".join([FORMAT, *map(str, identity.values())]).encode()).hexdigest()[:16]
    folder = cache_dir / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        shape = (len(images), encoder.side**2, encoder.width)
        found = _opened(folder, shape, memory)
        if found is None:
            with atomic_path(folder) as temporary:
                temporary.mkdir()
                _write(images, encoder, temporary / FEATURES)
                facts = {**identity, "features": file_digest(temporary / FEATURES)}
                (temporary / HEADER).write_text(signed(facts), encoding="utf-8")
            found = np.load(folder / FEATURES, mmap_mode="r")
    return PatchTargets(found, key)


def _opened(folder: Path, shape: tuple[int, ...], memory: Path | None) -> np.ndarray | None:
    """Return the features in `folder`, None if they are missing or damaged (logged)."""
    if not folder.is_dir():
        return None
    path = folder / FEATURES
    try:
        expected = read_signed(folder / HEADER)["features"]

        def check(path: Path) -> None:
            if file_digest(path) != expected:
                raise DataError(f"{path}: wrong checksum: the file was changed or damaged")

        for _, why in find_damaged([path], check, memory, str(expected)):
            raise ValueError(why)
        features = np.load(path, mmap_mode="r")
        if features.shape != shape or features.dtype != np.float16:
            raise ValueError(f"{path}: it holds {features.dtype} {features.shape}, not float16 {shape}")
        return features
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is damaged (%s); encoded again", folder, error)
        return None


def _write(images: CaptionedImages, encoder: PatchEncoder, path: Path) -> None:
    shape = (encoder.side**2, encoder.width)
    features = np.lib.format.open_memmap(path, "w+", np.float16, (len(images), *shape))
    for start in range(0, len(images), IMAGES_PER_PASS):
        rows = range(start, min(start + IMAGES_PER_PASS, len(images)))
        batch = torch.from_numpy(np.stack([images[i].image for i in rows]))
        found = encoder.encode(batch).half().cpu()
        if found.shape != (len(rows), *shape):
            raise _rejected(
                encoder, f"returns features {tuple(found.shape)} for {len(rows)} images, not (B, T, E) {shape}"
            )
        if not found.isfinite().all():
            raise _rejected(encoder, "returns features that are not finite in half precision")
        features[start : rows.stop] = found.numpy()
    features.flush()


def _rejected(encoder: PatchEncoder, why: str) -> ConfigError:
    return ConfigError(f"'alignment.encoder': {type(encoder).__name__} {why}")
