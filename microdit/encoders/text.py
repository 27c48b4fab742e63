"""Captions to token features, through any open_clip text tower.

B batch, S text tokens, Y width of the text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from microdit.encoders.open_clip_folder import context_length, open_clip_folder
from microdit.errors import ConfigError


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
    """Token features of a CLIP's text tower, without its pooling and projection."""

    def __init__(self, folder: Path, layer: str, device: torch.device | str) -> None:
        clip = open_clip_folder(folder, "text.path", device)
        self._clip = clip
        self._tower: Any = getattr(clip.model, "text", clip.model)  # CustomTextCLIP keeps its tower apart
        if not hasattr(self._tower, "token_embedding"):
            raise ConfigError(f"'text.path': {folder} has no CLIP text transformer (its text tower is of another kind)")
        self._blocks = list(self._tower.transformer.resblocks)
        if layer == "penultimate":
            self._blocks = self._blocks[:-1]
        self._device = torch.device(device)
        self.width = self._tower.ln_final.normalized_shape[0]
        self.length = clip.context_length
        self.fingerprint = f"{clip.fingerprint}-{layer}"

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        if not captions:
            return torch.zeros(0, self.length, self.width)
        tower = self._tower
        tokens = self._clip.tokenize(list(captions)).to(self._device)  # (B, S)
        x = tower.token_embedding(tokens) + tower.positional_embedding[: tokens.shape[1]]
        mask = tower.attn_mask
        mask = mask[: tokens.shape[1], : tokens.shape[1]] if mask is not None else None
        for block in self._blocks:
            x = block(x, attn_mask=mask)
        return tower.ln_final(x).float()
