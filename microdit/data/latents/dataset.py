"""`latents`: images that `microdit data encode` has encoded before.

Training reads their latents alone. Where pictures are wanted (the scores' reference, a contact sheet) they are decoded,
or read from where the originals lie.
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
from microdit.data.latents.reader import check_all, open_images, read_index, settings_of, to_overrides
from microdit.data.latents.training_data import EncodedDataset, with_captions
from microdit.encoders.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from microdit.encoders.text import TextEncoder


class LatentImages:
    """One split of a folder of encoded images.

    Raises:
        ConfigError: no path, another resolution than the data's own, or the split "composition".
        DataError: the folder is unfinished, or a file is missing, truncated or foreign; names it.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        if split == "composition":
            raise ConfigError("dataset 'latents' has no split 'composition' (only 'emoji-captions' has); use 'val'")
        if not config.path:
            raise ConfigError("dataset 'latents' needs 'data.path', a folder that 'microdit data encode' made")
        self.root = Path(config.path).expanduser()
        self.split = split
        self.images = open_images(self.root, split, config.train_size if split == "train" else config.val_size)
        index = self.images.index
        self.index = index
        self.resolution, self.classes = int(index["resolution"]), tuple(index["classes"])
        self._originals = Path(config.originals).expanduser() if config.originals else None
        self._decoder: Autoencoder | None = None
        if not len(self.images):
            raise DataError(f"{self.root} has no images for the split '{split}'; encode it with a --val-fraction")
        if config.resolution != self.resolution:
            raise ConfigError(f"{_sizes(self.root, index)}, but 'data.resolution' is {config.resolution}")

    @property
    def fingerprint(self) -> str:
        """Of the shards' checksums, the split, how much of it is used, and whether originals stand for it."""
        parts = [self.index["fingerprint"], self.split, str(len(self)), "originals" if self._originals else "decoded"]
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def originals_digest(self, rows: Iterable[int]) -> str:
        """Digest of the content of these images' originals; '' if there are none, and latents are decoded instead."""
        if self._originals is None:
            return ""
        digest = hashlib.sha256()
        for row in rows:
            path = self._originals / self.images.key(int(row))
            digest.update(content_digest(path).encode() if path.is_file() else b"missing")
        return digest.hexdigest()

    def originals_state(self) -> str:
        """Digest of the originals' `file_state`: it changes whenever one is written, without reading any."""
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
        """The autoencoder that the latents are of; by default from where it lay when they were made."""
        if self._decoder is None:
            made = self.index["autoencoder"]
            try:
                found = build_autoencoder(AutoencoderConfig(made["path"], made.get("precision", "fp32")), device)
                check_autoencoder(self.root, self.index, found)
            except ConfigError as error:
                raise ConfigError(
                    f"{self.root} was encoded with the autoencoder '{made['path']}', which decodes it too: set "
                    f"autoencoder.path to where it lies now ({error})"
                ) from None
            self._decoder = found
        return self._decoder

    def decode_by(self, autoencoder: Autoencoder) -> None:
        """Takes an autoencoder that `check_autoencoder` has found to be the right one."""
        self._decoder = autoencoder

    def encoded(self, text_encoder: TextEncoder, cache_dir: Path, store_captions: bool) -> EncodedDataset:
        """What training reads; caption features from the folder itself, or else from the cache.

        Raises DataError where a checksum is wrong; files found good are not read again until they change.
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
            # Of features that came with their images the encoder isn't known by its weights, only by its sizes.
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
    """Raises ConfigError where latents are of another autoencoder, telling what differs."""
    made, given = index["autoencoder"], autoencoder.describe()
    if made["fingerprint"] == given["fingerprint"]:
        return
    # Latents that were made elsewhere don't tell their autoencoder's weights: what they do tell must fit.
    told = [key for key, value in made.items() if key in given and not (key == "fingerprint" and value is None)]
    wrong = [f"{key} {made[key]!r} there and {given[key]!r} here" for key in told if made[key] != given[key]]
    if wrong:
        raise ConfigError(
            f"'autoencoder.path' names another autoencoder than the one that {root} was encoded with "
            f"('{made['path']}'): {', '.join(wrong)}; set autoencoder.path=data, or to where that one lies"
        )


def settings_from_latents(path: str) -> dict[str, int]:
    """What the header of encoded images decides, by dotted keys: resolution, latent channels, latent side.

    Raises DataError where the folder isn't there, or isn't finished.
    """
    return settings_of(read_index(Path(path).expanduser()))


def _sizes(root: Path, index: Mapping[str, Any]) -> str:
    channels, side, _ = index["latents"]["shape"]
    return (
        f"{root} holds {channels} x {side} x {side} latents of {index['resolution']} px images (set "
        f"{to_overrides(settings_of(index))})"
    )
