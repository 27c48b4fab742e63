"""Captions to token features, through any open_clip text tower.

B batch, S text tokens, Y width of the text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from microdit.encoders.open_clip_folder import (
    ClipFolder,
    clip_fingerprint,
    context_length,
    open_clip_folder,
    read_settings,
)
from microdit.errors import ConfigError

WIDTH, LENGTH = 512, 77  # open_clip's, where a configuration leaves them out


@dataclass(frozen=True)
class TextConfig:
    """What turns captions into features."""

    path: str = "builtin"  # builtin (small CLIP) | an open_clip folder
    layer: Literal["last", "penultimate"] = "last"  # whose output conditions the network, after the final norm


class TextEncoder(Protocol):
    """A frozen map from captions to one feature a token; all S positions count, padding included."""

    width: int
    length: int
    fingerprint: str

    def encode(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, S, Y) float32; longer captions are cut at S tokens."""


def build_text_encoder(config: TextConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """Opens what `config.path` names; raises ConfigError naming what is missing."""
    return ClipText(_folder(config), config.layer, device)


def text_length(config: TextConfig) -> int | None:
    """S of the encoder that `config` names, without loading it; None where its folder isn't there to be asked."""
    return context_length(_folder(config))


def _folder(config: TextConfig) -> Path:
    if config.path == "builtin":
        from microdit.assets import TEXT_CLIP

        return TEXT_CLIP
    return Path(config.path).expanduser()


class ClipText:
    """Token features of a CLIP's text tower, without its pooling and projection.

    Loads its weights at the first caption: a run whose captions are encoded already needs only its sizes.
    """

    def __init__(self, folder: Path, layer: str, device: torch.device | str) -> None:
        settings = read_settings(folder, "text.path")["model_cfg"]["text_cfg"]
        if settings.get("hf_model_name"):
            raise ConfigError(_not_clip(folder))
        self._folder, self._layer, self._device = folder, layer, torch.device(device)
        self.width = int(settings.get("width", WIDTH))
        self.length = int(settings.get("context_length", LENGTH))
        self.fingerprint = f"{clip_fingerprint(folder)}-{layer}"

    @cached_property
    def _clip(self) -> ClipFolder:
        return open_clip_folder(self._folder, "text.path", self._device)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        if not captions:
            return torch.zeros(0, self.length, self.width)
        tower: Any = getattr(self._clip.model, "text", self._clip.model)  # CustomTextCLIP keeps its tower apart
        if not hasattr(tower, "token_embedding"):
            raise ConfigError(_not_clip(self._folder))
        blocks = list(tower.transformer.resblocks)
        tokens = self._clip.tokenize(list(captions)).to(self._device)  # (B, S)
        x = tower.token_embedding(tokens) + tower.positional_embedding[: tokens.shape[1]]
        mask = tower.attn_mask
        mask = mask[: tokens.shape[1], : tokens.shape[1]] if mask is not None else None
        for block in blocks[:-1] if self._layer == "penultimate" else blocks:
            x = block(x, attn_mask=mask)
        return tower.ln_final(x).float()


def _not_clip(folder: Path) -> str:
    return f"'text.path': {folder} has no CLIP text transformer (its text tower is of another kind)"
