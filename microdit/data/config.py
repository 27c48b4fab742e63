"""Settings of the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from microdit.common.limits import Range, check_settings


@dataclass(frozen=True)
class DataConfig:
    """Configure which captioned images to train on."""

    name: str = "emoji-captions"
    """`emoji-captions`, `folder`, `latents`, a registered name, or the dotted path of a class.

    The class is called with (config, split). Its module need not be listed in `plugins`.
    """
    path: str | None = None
    """`folder`, `latents`: folder of the images, or of the encoded images."""
    originals: str | None = None
    """`latents`: folder of the images that were encoded, the reference of the scores; null: decoded latents."""
    resolution: Annotated[int, Range(16, 1 << 15)] = 64
    """Side of the square images, pixels."""
    train_size: Annotated[int, Range(1, 10**10)] = 16_384
    """Images of the train split; of datasets other than `emoji-captions` the maximum."""
    val_size: Annotated[int, Range(1, 10**9)] = 1_024
    """Images of the val (and composition) split; of datasets other than `emoji-captions` the maximum."""
    seed: int = 0
    """Seed of the scenes (`emoji-captions`) or of the split (`folder`)."""
    max_objects: Annotated[int, Range(1, 3)] = 3
    """`emoji-captions`: at most this many objects in a scene, 1 to 3."""
    hues: bool = True
    """`emoji-captions`: objects appear in several colors; false keeps each drawing's own."""
    scenery: bool = True
    """`emoji-captions`: some scenes have ground, sea or sky behind the object; false has plain backgrounds only."""
    sizes: bool = True
    """`emoji-captions`: some objects are small or big, and captions mention it; false has middle sizes only."""
    drawings: Annotated[int | None, Range(1)] = None
    """`emoji-captions`: at most this many drawings per class; null for all."""
    places: bool = True
    """`emoji-captions`: size and place vary; false centers objects in their part of the frame."""
    specific_names: bool = True
    """`emoji-captions`: captions may name a drawing "taxi" or "owl"; false uses "car" and "bird"."""
    val_fraction: Annotated[float, Range(above=0, below=1)] = 0.1
    """`folder`: share of the images held out for val, chosen by a hash of the file name and `seed`."""

    def __post_init__(self) -> None:
        check_settings("data", self)
