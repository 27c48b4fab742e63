"""Build datasets by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from microdit.common.errors import ConfigError, nearest
from microdit.common.registry import Registry
from microdit.data.config import DataConfig
from microdit.data.dataset import SPLITS, CaptionedImages
from microdit.data.emoji.dataset import EmojiCaptions
from microdit.data.image_folder.dataset import ImageFolder
from microdit.data.in_memory import IN_MEMORY
from microdit.data.latents.dataset import LatentImages

DatasetBuilder = Callable[[DataConfig, str], CaptionedImages]  # (settings, split) -> dataset

# Unlike in other roles, a dotted path may name any module: runs recorded before `plugins` existed stay valid.
DATASETS: Registry[DatasetBuilder] = Registry(
    "data.name",
    {"emoji-captions": EmojiCaptions, "folder": ImageFolder, "latents": LatentImages},
    open_paths=True,
)
BUNDLED_DATASETS = tuple(DATASETS)
register_dataset = DATASETS.register


def build_dataset(config: DataConfig, split: str) -> CaptionedImages:
    """Build the dataset that `config.name` names.

    Args:
        config: settings; a user's class may interpret `path` and the sizes in its own way.
        split: "train", "val" (images never trained on), or "composition" (combinations of class, background and count
            that occur in no other split; `emoji-captions` only).

    Returns:
        The split, with an image side of `config.resolution` pixels.

    Raises:
        ConfigError: if the dataset or the split is unknown, or the class lacks part of a dataset.
        DataError: if images are missing or damaged.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split '{split}'; {nearest(split, SPLITS)}")
    if config.name.startswith(f"{IN_MEMORY}:"):
        raise ConfigError(
            f"'data.name' is '{config.name}': the run was trained on data that a Python program passed to "
            "microdit.train; pass data to microdit.evaluate, too, or set 'data.name'"
        )
    builder = DATASETS.resolve(config.name)
    if config.name in BUNDLED_DATASETS:
        return builder(config, split)
    try:
        inspect.signature(builder).bind(config, split)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'data.name' is '{config.name}', which can't be called with (config, split): {error}"
        ) from error
    dataset = builder(config, split)
    if not isinstance(dataset, CaptionedImages):
        raise ConfigError(
            f"'data.name' is '{config.name}', but it lacks part of a dataset: "
            "__len__, __getitem__, fingerprint, classes, resolution"
        )
    return dataset
