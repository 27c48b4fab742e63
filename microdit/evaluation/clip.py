"""Load the CLIP model that scores images.

It is the bundled one, which was trained separately from the text encoder, or any open_clip folder. B batch, E embedding
width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.files.atomic import stat_fingerprint
from microdit.encoders.config import SCORE_CLIP
from microdit.encoders.hub import cached_hub_file, is_name, known_name
from microdit.encoders.open_clip_checkpoint import CONFIG, WEIGHTS, clip_fingerprint, open_clip_folder, read_settings

CLIP_KEY, BUILTIN = "evaluation.clip", "builtin"
VIT_SIZES = {
    (768, 12): "b",
    (1024, 24): "l",
    (1280, 32): "h",
    (1408, 40): "g",
    (1664, 48): "bigg",
}  # name by width and layers


class ScoringClip:
    """Embed images and captions in one space.

    Args:
        device: where the network runs.
        path: as in `evaluation.clip`.

    Raises:
        ConfigError: if a file of the model is missing or broken.
    """

    def __init__(self, device: torch.device | str = "cpu", path: str = BUILTIN) -> None:
        self._clip = open_clip_folder(clip_folder(path), CLIP_KEY, device)
        self.fingerprint = self._clip.fingerprint

    @staticmethod
    def digest(path: str = BUILTIN) -> str:
        """Return the fingerprint without loading the network.

        Raises:
            ConfigError: if a file of the model is missing.
        """
        folder = clip_folder(path)
        read_settings(folder, CLIP_KEY)  # raises if a file is missing
        return _fingerprint(folder, stat_fingerprint(folder))

    @staticmethod
    def embedding_width(path: str = BUILTIN) -> int:
        """Return E without loading the network.

        Raises:
            ConfigError: if the model is missing or its configuration has no such entry.
        """
        folder = clip_folder(path)
        try:
            return int(read_settings(folder, CLIP_KEY)["model_cfg"]["embed_dim"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"'{CLIP_KEY}': {folder / CONFIG} has no 'embed_dim'") from None

    def image_features(self, images: Tensor) -> Tensor:
        """Return image features before normalization.

        Args:
            images: (B, H, W, 3) uint8, resized with antialiasing to the network's input size.

        Returns:
            (B, E) float32.
        """
        return self._clip.image_features(images)

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length image embeddings.

        Args:
            images: (B, H, W, 3) uint8, of any size.

        Returns:
            (B, E) float32.
        """
        return self._clip.embed_images(images)

    def embed_texts(self, captions: Sequence[str], batch_size: int | None = None) -> Tensor:
        """Return unit-length embeddings of captions.

        Args:
            captions: B texts.
            batch_size: captions per forward pass; None passes all at once.

        Returns:
            (B, E) float32.
        """
        size = batch_size or max(len(captions), 1)
        return torch.cat([self._clip.embed_texts(captions[i : i + size]) for i in range(0, len(captions), size)])


def scoring_clip(device: str, path: str = BUILTIN) -> ScoringClip:
    """Return this process's scoring CLIP, cached until its files change.

    Args:
        device: "cpu" or "cuda".
        path: as in `evaluation.clip`.
    """
    return _scoring_clip(device, path, stat_fingerprint(clip_folder(path)))


@lru_cache(maxsize=2)
def _scoring_clip(device: str, path: str, files: str) -> ScoringClip:
    return ScoringClip(device, path)


@lru_cache(maxsize=8)
def _fingerprint(folder: Path, files: str) -> str:
    return clip_fingerprint(folder)


def clip_folder(path: str) -> Path:
    """Return the open_clip folder that `path` names.

    `path` is "builtin", a folder, MODEL/TAG, or hf-hub:OWNER/NAME. The last two are looked up in Hugging Face's cache;
    nothing is downloaded.

    Raises:
        ConfigError: if it is missing; the message has the download command.
    """
    if path == BUILTIN:
        return SCORE_CLIP
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    repository = _repository(path)
    return folder if repository is None else _cached(path, repository)


def clip_title(folder: Path) -> str:
    """Return a model's title from its configuration, such as "clip-vit-b-32".

    It does not identify the weights; the digest does.
    """
    vision = read_settings(folder, CLIP_KEY)["model_cfg"]["vision_cfg"]
    if vision.get("timm_model_name"):
        words = f"clip-{vision['timm_model_name']}"
    else:
        layers, width = vision.get("layers", 12), vision.get("width", 768)
        size = (
            f"vit-{VIT_SIZES[width, layers]}"
            if isinstance(layers, int) and (width, layers) in VIT_SIZES
            else f"{width}"
        )
        words = f"clip-{size}-{vision.get('patch_size', 16)}" if isinstance(layers, int) else f"clip-resnet-{width}"
    return re.sub(r"[+@/\s]", "-", words)  # '+' and '@' separate the names of networks in a run's tag


def _repository(path: str) -> str | None:
    """Return the Hugging Face repository of an open_clip name; None if `path` is a folder."""
    if path.startswith("hf-hub:"):
        return path.removeprefix("hf-hub:")
    if not is_name(path):
        return None
    _, published = known_name(path, CLIP_KEY)
    hub = str(published.get("hf_hub") or "").strip("/")
    if hub.count("/") != 1:
        raise ConfigError(
            f"'{CLIP_KEY}': {path} has no repository in open_clip's folder format; give a folder that you saved"
        )
    return hub


def _cached(path: str, repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    config, *weights = (cached_hub_file(repository, name) for name in (CONFIG, *WEIGHTS))
    if config is None or not any(weights):
        raise ConfigError(
            f"'{CLIP_KEY}': {path} is not in {HF_HUB_CACHE}: put it there with `hf download {repository} {CONFIG} "
            f"{WEIGHTS[0]}`, or give a folder that has these two files"
        )
    return config.parent
