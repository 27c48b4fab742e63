"""Settings of the dataset."""

from __future__ import annotations

from dataclasses import dataclass

from microdit.common.errors import ConfigError
from microdit.common.limits import check_limits


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
