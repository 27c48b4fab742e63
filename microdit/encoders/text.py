"""Choose and open the text encoder of a configuration.

B batch, S text tokens, Y width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from microdit.common.errors import ConfigError, nearest
from microdit.common.registry import Registry
from microdit.encoders import config as settings
from microdit.encoders import open_clip_checkpoint, open_clip_text, transformers_text
from microdit.encoders.config import TextConfig
from microdit.encoders.hub import hub_folder, is_name
from microdit.encoders.open_clip_text import ClipText, folder_source, named_source
from microdit.encoders.sizes import CLIP_HUB, TEXT_KEY, TRANSFORMERS_HUB, is_transformers, text_folder
from microdit.encoders.transformers_text import TransformersText
from microdit.model.conditioning import Captions


class TextEncoder(Protocol):
    """Map captions to token features with a frozen network."""

    width: int
    length: int
    layer: str
    fingerprint: str

    def encode(self, captions: Sequence[str]) -> Captions:
        """Encode captions.

        Args:
            captions: B texts; longer ones are cut at S tokens.

        Returns:
            Features (B, S, Y) float32, with a mask if padding must be ignored.
        """


# A class is called with (settings, device).
TEXT_ENCODERS: Registry[Callable[[TextConfig, torch.device], TextEncoder]] = settings.TEXT_ENCODERS
register_text_encoder = TEXT_ENCODERS.register


def build_text_encoder(config: TextConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """Open the text encoder that `config` names.

    Args:
        config: path, layer and length, or the user's class.
        device: where it runs.

    Returns:
        The encoder; its weights may be loaded only at the first caption.

    Raises:
        ConfigError: if something is missing; the message has it and the valid choices.
    """
    if config.encoder is not None:
        return TEXT_ENCODERS.resolve(config.encoder)(config, torch.device(device))
    path, folder = config.path, text_folder(config.path)
    if path.startswith((CLIP_HUB, TRANSFORMERS_HUB)):
        folder = _hub_folder(path)
    if is_transformers(path, folder):
        return TransformersText(folder, config.layer, config.length, device)
    if is_name(path):
        return ClipText(named_source(path), config.layer, config.length, device)
    if not folder.is_dir():
        near = nearest(path, ("builtin", "minilm"))
        raise ConfigError(
            f"'text.path': {folder}: no such folder; {near} (or a folder of open_clip's or transformers')"
        )
    return ClipText(folder_source(folder), config.layer, config.length, device)


def _hub_folder(path: str) -> Path:
    prefix, _, repository = path.partition(":")
    if f"{prefix}:" == CLIP_HUB:
        needed, weights = open_clip_checkpoint.CONFIG, open_clip_checkpoint.WEIGHTS
        remedy = open_clip_text.remedy(repository)
    else:
        needed, weights = transformers_text.CONFIG, transformers_text.WEIGHTS
        remedy = (
            f"without a connection, put {needed}, the tokenizer's files and model.safetensors into a folder and name it"
        )
    return hub_folder(repository, needed, weights, TEXT_KEY, remedy)
