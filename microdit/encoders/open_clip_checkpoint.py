"""Open a local folder in open_clip's format.

If the folder has a merge list of its own tokenizer, it is used. B batch, H W image height and width, S text tokens, E
embedding width, Y width of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.files.digests import sha256
from microdit.common.files.text import read_json
from microdit.common.files.torch_archive import read_torch_file
from microdit.encoders.hub import short
from microdit.encoders.sizes import DEFAULT_LENGTH, OPEN_CLIP_CONFIG

CONFIG, MERGES = OPEN_CLIP_CONFIG, "bpe_merges.txt.gz"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ClipFolder:
    """Embed images and captions with a frozen CLIP in float32."""

    model: Any
    tokenize: Callable[[Sequence[str]], Tensor]  # captions -> (B, S) int64
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    context_length: int
    fingerprint: str
    device: torch.device

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return image features before normalization.

        Args:
            images: (B, H, W, 3) uint8, resized with antialiasing to the network's input size.

        Returns:
            (B, E) float32.
        """
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        size = self.image_size
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return self.model.encode_image((x - mean) / std).float()

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit-length image embeddings.

        Args:
            images: (B, H, W, 3) uint8, of any size.

        Returns:
            (B, E) float32.
        """
        return F.normalize(self.image_features(images), dim=-1)

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """Return unit-length embeddings of B captions.

        Returns:
            (B, E) float32.
        """
        tokens = self.tokenize(list(captions)).to(self.device)
        return F.normalize(self.model.encode_text(tokens), dim=-1).float()


def read_settings(folder: Path, key: str) -> dict[str, Any]:
    """Return the folder's configuration and check that its files exist.

    Args:
        folder: in open_clip's format.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: if a file is missing or is not an open_clip configuration; the message names the file.
    """
    where = f"'{key}': {folder}"
    if not folder.is_dir():
        raise ConfigError(f"{where}: no such folder; give an open_clip folder or 'builtin'")
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{where} has no {CONFIG}; an open_clip folder has this file, a transformers folder config.json"
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ConfigError(f"{where} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}")
    try:
        settings: dict[str, Any] = read_json(folder / CONFIG, ConfigError)
        for part in ("text_cfg", "vision_cfg"):
            dict(settings["model_cfg"][part])  # raises if it is missing or not a mapping
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: not an open_clip configuration ({error!r})") from None
    return settings


def open_clip_folder(folder: Path, key: str, device: torch.device | str = "cpu") -> ClipFolder:
    """Load an open_clip folder.

    Args:
        folder: in open_clip's format.
        key: the setting that names it, for messages.
        device: where the network runs.

    Returns:
        The network with its tokenizer and preprocessing.

    Raises:
        ConfigError: if a file is missing or broken; the message names the file.
    """
    settings = read_settings(folder, key)
    text, vision = settings["model_cfg"]["text_cfg"], settings["model_cfg"]["vision_cfg"]
    import open_clip

    name = f"local-dir:{folder}"
    try:
        model = _load_model(name, folder, device)
        merges = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
        tokenize = open_clip.get_tokenizer(name, **merges)
    except Exception as error:  # loaders raise almost any type for a damaged file
        raise ConfigError(f"'{key}': {folder}: open_clip can't load it: {short(error)}") from None
    preprocess = settings.get("preprocess_cfg", {})
    return ClipFolder(
        model=model.eval().requires_grad_(False),
        tokenize=tokenize,
        mean=tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD)),
        image_size=int(vision["image_size"]),
        context_length=int(text.get("context_length", DEFAULT_LENGTH)),
        fingerprint=clip_fingerprint(folder),
        device=torch.device(device),
    )


def _load_model(name: str, folder: Path, device: torch.device | str) -> Any:
    """Return the folder's network with its weights.

    open_clip reads safetensors; pickles are only parsed.
    """
    import open_clip

    if (folder / WEIGHTS[0]).is_file():
        return open_clip.create_model(name, device=device, precision="fp32", load_weights=True)
    return with_parsed(open_clip.create_model(name, device=device, precision="fp32", load_weights=False), folder)


def with_parsed(model: Any, path: Path) -> Any:
    """Return `model` with weights from a `torch.save` file, which is only parsed.

    Args:
        model: the network to load into.
        path: the file, or a folder that has it.

    Raises:
        CheckpointError: if the file can't be read.
        TypeError: if it has no state dict.
        RuntimeError: if the state dict is of another network.
    """
    path = path / WEIGHTS[1] if path.is_dir() else path
    stored = read_torch_file(path)
    if not isinstance(stored, dict):
        raise TypeError(f"{path} has no state dict")
    stored = stored.get("state_dict", stored)
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    return model


def clip_fingerprint(folder: Path) -> str:
    """Return a digest of everything that determines the folder's features."""
    return sha256(*[folder / name for name in (CONFIG, *WEIGHTS, MERGES) if (folder / name).is_file()])
