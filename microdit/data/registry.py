"""Datasets by name."""

from __future__ import annotations

import importlib
import inspect

from microdit.common.errors import ConfigError, nearest
from microdit.data.config import DataConfig
from microdit.data.dataset import SPLITS, CaptionedImages
from microdit.data.emoji.dataset import EmojiCaptions
from microdit.data.image_folder.dataset import ImageFolder
from microdit.data.latents.dataset import LatentImages

DATASETS = ("emoji-captions", "folder", "latents")


def build_dataset(config: DataConfig, split: str) -> CaptionedImages:
    """The dataset that `config.name` names.

    Args:
        split: "train", "val" (images never trained on), or "composition" (combinations of class, background and count
            that occur in no other split; `emoji-captions` only).

    Raises:
        ConfigError: unknown dataset or split. DataError: the images are missing or broken.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split '{split}'; {nearest(split, SPLITS)}")
    if config.name == "emoji-captions":
        return EmojiCaptions(config, split)
    if config.name == "folder":
        return ImageFolder(config, split)
    if config.name == "latents":
        return LatentImages(config, split)
    return _plugin(config, split)


def _plugin(config: DataConfig, split: str) -> CaptionedImages:
    module_name, _, class_name = config.name.rpartition(".")
    if not module_name:
        raise ConfigError(f"'data.name' is '{config.name}', which is no dataset; {nearest(config.name, DATASETS)}")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'data.name' is '{config.name}', which can't be imported: {error}") from error
    try:
        inspect.signature(cls).bind(config, split)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'data.name' is '{config.name}', which can't be called with (config, split): {error}"
        ) from error
    dataset = cls(config, split)
    if not isinstance(dataset, CaptionedImages):
        raise ConfigError(
            f"'data.name' is '{config.name}', but it lacks part of a dataset: "
            "__len__, __getitem__, fingerprint, classes, resolution"
        )
    return dataset
