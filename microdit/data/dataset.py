"""Define the dataset protocol: a deterministic collection of captioned images."""

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
    """Index into the dataset's `classes`, -1 if unknown."""
    attributes: Mapping[str, Any]
    """Further facts about the image: numbers, strings, lists and mappings."""


@runtime_checkable
class CaptionedImages(Protocol):
    """A sized, indexable, deterministic collection of captioned images.

    Item `i` is the same in every process and independent of earlier reads, so loaders may read in any order.
    """

    classes: tuple[str, ...]
    resolution: int

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything that determines the content.

        It is the key of cached features and statistics.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample: ...


@runtime_checkable
class HasOriginals(Protocol):
    """A dataset whose items may be read from files that its fingerprint doesn't cover."""

    def originals_digest(self, rows: Iterable[int]) -> str:
        """Return a digest of the content of the files of some items; "" if there are none.

        Args:
            rows: the items' indices.
        """
        ...

    def originals_state(self) -> str:
        """Return a digest that changes whenever one of the files is written.

        It is computed without reading them.
        """
        ...
