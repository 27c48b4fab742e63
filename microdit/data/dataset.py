"""What a dataset of captioned images is, and how a configuration becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

SPLITS = ("train", "val", "composition")


@dataclass(frozen=True)
class Sample:
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

    def __getitem__(self, i: int) -> Sample: ...


@runtime_checkable
class HasOriginals(Protocol):
    """A dataset whose items may be read from files that its fingerprint doesn't cover."""

    def originals_digest(self, rows: Iterable[int]) -> str:
        """Digest of the content of these items' files; '' if there are none."""
        ...

    def originals_state(self) -> str:
        """Digest of what the system keeps of all files; it changes whenever one is written, and none is read."""
        ...
