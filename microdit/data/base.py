"""What a dataset of captioned images is, and how a configuration becomes one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from microdit.errors import ConfigError, nearest
from microdit.limits import check_limits

SPLITS = ("train", "val", "composition")
DATASETS = ("emoji-captions", "folder", "latents")


@dataclass(frozen=True)
class Item:
    """One captioned image."""

    image: np.ndarray
    """(H, W, 3) uint8, sRGB; H = W = the dataset's resolution."""
    caption: str
    label: int
    """Index into the dataset's `classes`, -1 where unknown."""
    attributes: Mapping[str, Any]
    """What the dataset knows about the picture besides its caption; plain numbers, strings, lists and mappings."""


@runtime_checkable
class CaptionedImages(Protocol):
    """A sized, indexable, deterministic collection of captioned images.

    Item `i` is the same in every process and whatever was read before it, so loaders may read in any order.
    """

    classes: tuple[str, ...]
    resolution: int

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that determines the content; caches of features and statistics are keyed by it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Item: ...


@runtime_checkable
class HasOriginals(Protocol):
    """A dataset whose items may be read from files that its fingerprint doesn't cover."""

    def originals_digest(self, rows: Iterable[int]) -> str:
        """Digest of the content of these items' files; '' if there are none."""
        ...

    def originals_state(self) -> str:
        """Digest of what the system keeps of all files; it changes whenever one is written, and none is read."""
        ...


@dataclass(frozen=True)
class DataConfig:
    """Which captioned images to train on."""

    name: str = "emoji-captions"
    """`emoji-captions`, `folder`, `latents`, or the dotted path of a class called with (config, split)."""
    path: str | None = None
    """Folder of the images, or of encoded ones; `folder` and `latents` need it, `emoji-captions` does not."""
    originals: str | None = None
    """`latents`: folder of the pictures that were encoded, which scores are then measured against; null: decoded."""
    resolution: int = 64
    """Side of the square images, pixels."""
    train_size: int = 20_000
    """Images of the train split; for others the most that are used."""
    val_size: int = 1_000
    """Images of the val (and composition) split; for others the most that are used."""
    seed: int = 0
    """Seed of the scenes (`emoji-captions`) or of the split (`folder`)."""
    max_objects: int = 3
    """`emoji-captions`: at most this many objects in a scene, 1 to 3."""
    hues: bool = True
    """`emoji-captions`: objects appear in several colours; false leaves each drawing as it is."""
    scenery: bool = True
    """`emoji-captions`: some scenes have ground, sea or sky behind the object; false leaves plain backgrounds."""
    sizes: bool = True
    """`emoji-captions`: some objects are small or big, and captions say so; false keeps a middle size."""
    drawings: int | None = None
    """`emoji-captions`: at most this many drawings of a class; null for all."""
    places: bool = True
    """`emoji-captions`: size and place vary; false puts objects in the middle of their part of the frame."""
    specific_names: bool = True
    """`emoji-captions`: captions may say "taxi" or "owl" for a drawing of one; false says "car" and "bird"."""
    val_fraction: float = 0.1
    """`folder`: share of the images held out for val, chosen by a hash of the file name and `seed`."""

    def __post_init__(self) -> None:
        check_limits("data", self, resolution=1 << 15, train_size=10**10, val_size=10**9)
        _require(self.resolution >= 16, "data.resolution", self.resolution, "at least 16")
        _require(self.train_size >= 1, "data.train_size", self.train_size, "at least 1")
        _require(self.val_size >= 1, "data.val_size", self.val_size, "at least 1")
        _require(1 <= self.max_objects <= 3, "data.max_objects", self.max_objects, "1, 2 or 3")
        _require(self.drawings is None or self.drawings >= 1, "data.drawings", self.drawings, "at least 1, or null")
        _require(0 < self.val_fraction < 1, "data.val_fraction", self.val_fraction, "between 0 and 1")


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"'{key}' is {value!r}; it must be {expected}")


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
        from microdit.data.emoji import EmojiCaptions

        return EmojiCaptions(config, split)
    if config.name == "folder":
        from microdit.data.folder import ImageFolder

        return ImageFolder(config, split)
    if config.name == "latents":
        from microdit.data.latents import LatentImages

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
