"""Define the parts of a scene of `emoji-captions`: groups of objects, their appearance and position, the background.

All positions and sizes are shares of the frame's side; x grows to the right, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
# left, top, right, bottom
Box = tuple[float, float, float, float]

SKY = (142, 205, 245)
PLAIN = {
    "white": (247, 248, 250),
    "gray": (160, 168, 176),
    "black": (38, 41, 46),
    "red": (214, 74, 80),
    "orange": (247, 164, 84),
    "yellow": (255, 226, 128),
    "green": (146, 203, 124),
    "blue": (116, 176, 236),
    "purple": (176, 146, 220),
    "pink": (248, 180, 200),
}
# name -> (sky, ground, haze, classes that may be shown there)
SCENERY = {
    "meadow": (SKY, (122, 190, 92), 0.5, ("automobile", "bird", "cat", "deer", "dog", "frog", "horse", "truck")),
    "sea": (SKY, (58, 128, 196), 0.5, ("ship",)),
    "desert": (SKY, (236, 204, 140), 0.5, ("automobile", "dog", "horse", "truck", "bird")),
    "snow": (SKY, (242, 245, 250), 0.3, ("automobile", "bird", "cat", "deer", "dog", "horse", "truck")),
    "road": (SKY, (122, 128, 136), 0.5, ("automobile", "truck", "dog", "cat")),
    "sky": (SKY, SKY, 0.0, ("airplane", "bird")),
    "night": ((24, 32, 74), (38, 54, 60), 0.12, ("airplane", "automobile", "cat", "deer", "dog", "ship", "truck")),
}
BACKGROUNDS = (*PLAIN, *SCENERY)
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Options:
    """Settings of the distribution of scenes."""

    max_objects: int = 3
    hues: bool = True
    scenery: bool = True
    sizes: bool = True
    drawings: int | None = None
    places: bool = True


@dataclass(frozen=True)
class Backdrop:
    """A background: colors in [0, 255] at top and bottom, or sky and ground with a horizon."""

    name: str
    upper: tuple[float, ...]
    lower: tuple[float, ...]
    horizon: float | None = None
    haze: float = 0.0


@dataclass(frozen=True)
class SceneObject:
    """One object in the image."""

    group: int
    code: str
    color: str | None
    """Its color in one word; None if no single word describes it."""
    flip: bool
    box: Box


@dataclass(frozen=True)
class Group:
    """Objects of one class that the caption mentions together."""

    kind: str
    count: int
    size: str | None = None
    """"small" or "big", or None for neither."""


@dataclass(frozen=True)
class Scene:
    """A complete scene before it is rendered."""

    groups: tuple[Group, ...]
    things: tuple[SceneObject, ...]
    backdrop: Backdrop
    relation: str | None
    """Of the first group to the second, one of `RELATIONS`; None if there is one group."""


class UniformDraws:
    """Random choices from one row of uniform numbers; much faster than a generator's own methods.

    Each method uses one number.

    Args:
        numbers: (n,) in [0, 1).
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = iter(numbers.tolist())

    def uniform(self, low: float, high: float) -> float:
        """Draw a number.

        Args:
            low: lower bound, included.
            high: upper bound, excluded.

        Returns:
            A number in [low, high).
        """
        return low + (high - low) * next(self._numbers)

    def chance(self, probability: float) -> bool:
        """Return True with a given probability.

        Args:
            probability: in [0, 1].
        """
        return next(self._numbers) < probability

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of `choices`, all with equal probability."""
        return choices[int(next(self._numbers) * len(choices))]

    def weighted(self, weights: Sequence[float]) -> int:
        """Return an index with a probability proportional to its weight.

        Args:
            weights: positive numbers, of any sum.
        """
        point = next(self._numbers) * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1
