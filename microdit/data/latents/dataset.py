"""Provide the dataset `latents`: images encoded by `microdit data encode`.

Training reads only their latents. If images are needed (the scores' reference, a contact sheet), the latents are
decoded, or the originals are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microdit.common.errors import ConfigError, DataError
from microdit.common.files.digests import content_digest, file_state
from microdit.common.files.verified import CHECKED
from microdit.data.config import DataConfig
from microdit.data.dataset import Sample
from microdit.data.images.reader import load_square
from microdit.data.latents.caption_store import HEADER, PREFIX, CaptionStore, StoredCaptions, store_name
from microdit.data.latents.reader import check_all, open_images, settings_of, to_overrides
from microdit.data.latents.training_data import EncodedDataset, with_captions
from microdit.encoders.autoencoder import Autoencoder, build_autoencoder
from microdit.encoders.config import AutoencoderConfig
from microdit.encoders.text import TextEncoder


class LatentImages:
    """One split of a folder of encoded images.

    Raises:
        ConfigError: if `path` is not set, `resolution` differs from the folder's, or the split is "composition".
        DataError: if the folder is unfinished, or a file is missing, truncated or of another format.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if split == "composition":
            raise ConfigError("dataset 'latents' has no split 'composition' (only 'emoji-captions' has); use 'val'")
        if not config.path:
            raise ConfigError("dataset 'latents' needs 'data.path', a folder written by 'microdit data encode'")
        self.root = Path(config.path).expanduser()
        self.split = split
        self.images = open_images(self.root, split, config.train_size if split == "train" else config.val_size)
        index = self.images.index
        self.index = index
        self.resolution, self.classes = int(index["resolution"]), tuple(index["classes"])
        self._originals = Path(config.originals).expanduser() if config.originals else None
        self._decoder: Autoencoder | None = None
        if not len(self.images):
            raise DataError(f"{self.root} has no images in the split '{split}'; encode it with --val-fraction above 0")
        if config.resolution != self.resolution:
            raise ConfigError(f"{_sizes(self.root, index)}, but 'data.resolution' is {config.resolution}")

    @property
    def fingerprint(self) -> str:
        """Return a digest of the encoded split.

        It covers the shards' checksums, the split, its size, and whether originals are used.
        """
        parts = [self.index["fingerprint"], self.split, str(len(self)), "originals" if self._originals else "decoded"]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def originals_digest(self, rows: Iterable[int]) -> str:
        """Return a digest of the content of some images' originals.

        Args:
            rows: the images' indices.

        Returns:
            Hex digits; "" if latents are decoded instead.
        """
        if self._originals is None:
            return ""
        digest = hashlib.sha256()
        for row in rows:
            path = self._originals / self.images.key(int(row))
            digest.update(content_digest(path).encode() if path.is_file() else b"missing")
        return digest.hexdigest()

    def originals_state(self) -> str:
        """Return a digest that changes whenever an original is written; reads none."""
        if self._originals is None:
            return ""
        paths = [self._originals / self.images.key(row) for row in range(len(self))]
        return hashlib.sha256(
            repr([file_state(path) if path.is_file() else None for path in paths]).encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        key = self.images.key(i)
        if self._originals is not None:
            image = load_square(self._originals / key, self.resolution)
        else:
            latent = torch.from_numpy(self.images.take(np.array([i])).astype(np.float32))
            image = self.decoder().decode(latent)[0].cpu().numpy()
        return Sample(image, self.images.caption(i), int(self.images.labels[i]), {"file": key})

    def decoder(self, device: torch.device | str = "cpu") -> Autoencoder:
        """Return the autoencoder of the latents.

        By default it is loaded from the path recorded when they were encoded.

        Raises:
            ConfigError: if it is missing at that path or has other weights.
        """
        if self._decoder is None:
            made = self.index["autoencoder"]
            try:
                found = build_autoencoder(AutoencoderConfig(made["path"], made.get("precision", "fp32")), device)
                check_autoencoder(self.root, self.index, found)
            except ConfigError as error:
                raise ConfigError(
                    f"{self.root} was encoded with the autoencoder '{made['path']}', which is needed to decode it; set "
                    f"autoencoder.path to its present location ({error})"
                ) from None
            self._decoder = found
        return self._decoder

    def decode_by(self, autoencoder: Autoencoder) -> None:
        """Decode with `autoencoder`, which `check_autoencoder` has accepted."""
        self._decoder = autoencoder

    def encoded(self, text_encoder: TextEncoder, cache_dir: Path, store_captions: bool) -> EncodedDataset:
        """Return the encoded data that training reads.

        Caption features come from the folder itself or else from the cache. Files whose checksums were verified are
        not read again until they change.

        Args:
            text_encoder: encodes captions without stored features.
            cache_dir: folder of the cache.
            store_captions: keep caption features in the cache; otherwise each batch's captions are encoded.

        Raises:
            ConfigError: if the folder's caption features are of another layer than `text_encoder`'s.
            DataError: if a checksum is wrong.
        """
        store = self._store(text_encoder)
        files = [shard.path for shard in self.images.shards] + (store.files if store else [])
        check_all(files, cache_dir / CHECKED)
        data = with_captions(self.images, self.split, text_encoder, cache_dir, store_captions and store is None)
        return data if store is None else data.with_features(StoredCaptions(store, self.images.digests))

    def _store(self, text_encoder: TextEncoder) -> CaptionStore | None:
        folder = self.root / store_name(text_encoder.fingerprint)
        if (folder / HEADER).is_file():
            return CaptionStore(folder)
        for header in sorted(self.root.glob(f"{PREFIX}*/{HEADER}")):
            store = CaptionStore(header.parent)
            # Imported features record their encoder's sizes but not its weights.
            sizes = (store.header["length"], store.header["width"])
            if store.header["fingerprint"] is None and sizes == (text_encoder.length, text_encoder.width):
                layer = store.header.get("layer", text_encoder.layer)
                if layer != text_encoder.layer:
                    raise ConfigError(
                        f"'text.layer' is {text_encoder.layer}, but the caption features in {store.folder} are of "
                        f"layer '{layer}'; set text.layer={layer}"
                    )
                return store
        return None


def check_autoencoder(root: Path, index: Mapping[str, Any], autoencoder: Autoencoder) -> None:
    """Check that the latents were made with this autoencoder.

    Args:
        root: the folder of encoded images, for messages.
        index: its index.
        autoencoder: the autoencoder of the run.

    Raises:
        ConfigError: if they were not; the message lists the differences.
    """
    made, given = index["autoencoder"], autoencoder.describe()
    if made["fingerprint"] == given["fingerprint"]:
        return
    # Imported latents don't record their autoencoder's weights; what they do record must match.
    recorded = [key for key, value in made.items() if key in given and not (key == "fingerprint" and value is None)]
    wrong = [
        f"{key} is {made[key]!r} in the data and {given[key]!r} here" for key in recorded if made[key] != given[key]
    ]
    if wrong:
        raise ConfigError(
            f"'autoencoder.path' names another autoencoder than the one that {root} was encoded with "
            f"('{made['path']}'): {', '.join(wrong)}; set autoencoder.path=data, or the path of that autoencoder"
        )


def _sizes(root: Path, index: Mapping[str, Any]) -> str:
    channels, side, _ = index["latents"]["shape"]
    return (
        f"{root} holds {channels} x {side} x {side} latents of {index['resolution']} px images (set "
        f"{to_overrides(settings_of(index))})"
    )
