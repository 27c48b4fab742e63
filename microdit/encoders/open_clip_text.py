"""Encode captions with open_clip's text towers, from a folder or by name.

B batch, S text tokens, Y width of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.encoders.hub import known_name, short
from microdit.encoders.open_clip_checkpoint import (
    CONFIG,
    WEIGHTS,
    clip_fingerprint,
    open_clip_folder,
    read_settings,
    with_parsed,
)
from microdit.encoders.sizes import DEFAULT_LENGTH, DEFAULT_WIDTH, TEXT_KEY

Tokenizer = Callable[[Sequence[str]], Tensor]  # captions -> (B, S) int64


@dataclass(frozen=True)
class ClipSource:
    """A CLIP whose text tower's settings are known and whose weights are loaded on demand."""

    name: str
    text: Mapping[str, Any]  # text_cfg of open_clip
    fingerprint: str
    load: Callable[[torch.device], tuple[Any, Tokenizer]]


def folder_source(folder: Path) -> ClipSource:
    """Return a local folder in open_clip's format."""
    settings = read_settings(folder, TEXT_KEY)

    def load(device: torch.device) -> tuple[Any, Tokenizer]:
        clip = open_clip_folder(folder, TEXT_KEY, device)
        return clip.model, clip.tokenize

    return ClipSource(str(folder), settings["model_cfg"]["text_cfg"], clip_fingerprint(folder), load)


def named_source(path: str) -> ClipSource:
    """Return a source for open_clip's `MODEL/TAG`.

    When the weights are needed, open_clip downloads them or finds them in its cache.

    Raises:
        ConfigError: if open_clip has no such model or weights; the message has the nearest name.
    """
    import open_clip

    model_name, _, tag = path.partition("/")
    settings, pretrained = known_name(path, TEXT_KEY)

    def load(device: torch.device) -> tuple[Any, Tokenizer]:
        try:
            file = Path(open_clip.download_pretrained(dict(pretrained)))  # safetensors if the repository has them
            known = str(file) if file.suffix == ".safetensors" else None
            model = open_clip.create_model(model_name, pretrained=known, device=device, precision="fp32")
            model = model if known else with_parsed(model, file)
            return model.eval().requires_grad_(False), open_clip.get_tokenizer(model_name)
        except Exception as error:  # loaders raise almost any type for a damaged file
            origin = str(pretrained.get("hf_hub") or pretrained.get("url")).strip("/")
            problem = short(error, 160)
            raise ConfigError(
                f"'{TEXT_KEY}' is '{path}': open_clip can't download it ({problem}); {remedy(origin)}"
            ) from None

    return ClipSource(path, settings["text_cfg"], f"open_clip/{model_name}/{tag}", load)


def remedy(origin: str) -> str:
    """Return what to do without a connection, for the end of a message."""
    return (
        f"without a connection, put {CONFIG} and {WEIGHTS[0]} (or {WEIGHTS[1]}) of {origin} into a folder and name it"
    )


class ClipText:
    """Encode captions as token features of a CLIP's text tower.

    The features come after its final norm, without pooling and projection. None of the S tokens is masked. The weights
    are loaded at the first caption, since a run with encoded captions needs only the sizes.

    Args:
        source: the CLIP.
        layer: "last" or "penultimate", the block whose output is used.
        length: `text.length`; None, or the tower's own.
        device: where the tower runs.

    Raises:
        ConfigError: if the text tower is not CLIP's, or has another length.
    """

    def __init__(self, source: ClipSource, layer: str, length: int | None, device: torch.device | str) -> None:
        if source.text.get("hf_model_name"):
            raise ConfigError(_not_clip(source.name))
        self._source, self.layer, self._device = source, layer, torch.device(device)
        self.width = int(source.text.get("width", DEFAULT_WIDTH))
        self.length = int(source.text.get("context_length", DEFAULT_LENGTH))
        self.fingerprint = f"{source.fingerprint}-{layer}"
        if length not in (None, self.length):
            raise ConfigError(f"'text.length' is {length}, but {source.name} has {self.length} tokens; leave it null")

    @cached_property
    def _clip(self) -> tuple[Any, Tokenizer]:
        return self._source.load(self._device)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Encode captions.

        Args:
            captions: B texts; longer ones are cut at S tokens.

        Returns:
            (B, S, Y) float32.

        Raises:
            ConfigError: if the weights can't be loaded, or the text tower is not CLIP's.
        """
        if not captions:
            return torch.zeros(0, self.length, self.width)
        model, tokenize = self._clip
        tower: Any = getattr(model, "text", model)  # CustomTextCLIP has a separate tower
        if not hasattr(tower, "token_embedding"):
            raise ConfigError(_not_clip(self._source.name))
        blocks = list(tower.transformer.resblocks)
        tokens = tokenize(list(captions)).to(self._device)  # (B, S)
        x = tower.token_embedding(tokens) + tower.positional_embedding[: tokens.shape[1]]
        mask = tower.attn_mask
        mask = mask[: tokens.shape[1], : tokens.shape[1]] if mask is not None else None
        for block in blocks[:-1] if self.layer == "penultimate" else blocks:
            x = block(x, attn_mask=mask)
        return tower.ln_final(x).float()


def _not_clip(name: str) -> str:
    return f"'{TEXT_KEY}': {name} has no CLIP text transformer (its text tower is of another kind)"
