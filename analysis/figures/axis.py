"""Lay out the x axis of a study's figure: linear or logarithmic numbers, or names."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_LOG_RANGE = 20  # use a log axis from this ratio of the largest to the smallest value
LOG_GAP_RATIO = 2.0  # use a log axis if its smallest tick gap is at least this many times the linear axis's
MAX_TICKS = 9  # with more values, matplotlib chooses the ticks
CHARACTERS_PER_PAGE = 105  # of tick labels in one row below the panels
MIN_TICK_GAP = 0.06  # fraction of the axis; a smaller gap has no room for labels, even slanted ones
MAX_NAME_CHARACTERS = 18  # of a slanted label


@dataclass(frozen=True)
class StudyAxis:
    """Positions of the values of x.

    Attributes:
        values: positions, ascending.
        names: the values if not all are numbers, in order; else empty.
        log: whether the axis is logarithmic.
        panels: number of panels beside each other.
    """

    values: tuple[float, ...]
    names: tuple[str, ...]
    log: bool
    panels: int = 3

    @classmethod
    def of(cls, x: pd.Series, panels: int = 3) -> StudyAxis:
        """Return the axis for a column of numbers or names.

        Args:
            x: the column, in the study's order of arms; float if all values are numbers.
            panels: number of panels beside each other.
        """
        found = list(dict.fromkeys(x))
        if not found or not all(isinstance(value, float) for value in found):
            return cls(tuple(float(i) for i in range(len(found))), tuple(str(value) for value in found), False, panels)
        values = tuple(sorted(found))
        return cls(values, (), _logarithmic(values), panels)

    def place(self, value: Any, shift: float = 0.0) -> float:
        """Return the position of a value on the axis.

        Args:
            value: a number or name of the axis.
            shift: distance to move it to the right, as a fraction of the axis.
        """
        if self.names:
            return self.values[self.names.index(str(value))] + shift * max(1, len(self.names) - 1)
        if self.log:
            return value * (self.values[-1] / self.values[0]) ** shift
        return value + shift * ((self.values[-1] - self.values[0]) or 1.0)

    def mark(self, axis: Axes) -> None:
        """Set a labeled tick at each value.

        Labels that would overlap are slanted and shortened.

        Args:
            axis: matplotlib's axes.
        """
        if self.log:
            axis.set_xscale("log")
        if self.names:
            axis.set_xlim(-0.5, len(self.names) - 0.5)
        else:
            axis.margins(x=0.14)
        if not self.names and (len(self.values) > MAX_TICKS or self.gap() < MIN_TICK_GAP):
            return
        axis.minorticks_off()
        room = self.gap() * CHARACTERS_PER_PAGE / max(self.panels, 1.5) * 0.75
        labels = [wrap(name, int(room)) for name in self.names] or self._numbers()
        if max(len(line) for label in labels for line in label.split("\n")) <= room:
            axis.set_xticks(self.values, labels)
            return
        axis.set_xticks(self.values, [_shorten(name) for name in self.names] or labels)
        for text in axis.get_xticklabels():
            text.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")

    def _numbers(self) -> list[str]:
        """Return the values with as few digits as distinguish them, at least three."""
        for digits in (3, 4, 5):
            short = [f"{value:g}" if value >= 1000 else f"{value:.{digits}g}" for value in self.values]
            if len(set(short)) == len(short):
                return short
        return [f"{value:g}" for value in self.values]

    def gap(self) -> float:
        """Return the smallest distance between neighbors, as a fraction of the axis."""
        if self.names:
            return 1 / len(self.names)
        at = [math.log(value) for value in self.values] if self.log else list(self.values)
        return min(((b - a) / (at[-1] - at[0]) for a, b in itertools.pairwise(at)), default=1.0)


def _logarithmic(values: tuple[float, ...]) -> bool:
    """Return whether the axis should be logarithmic.

    True for positive values that span a large range, or that are more evenly spaced on a log axis (1, 2, 4, 8).
    """
    if values[0] <= 0 or values[-1] / values[0] >= MIN_LOG_RANGE:
        return values[0] > 0
    gaps = [StudyAxis(values, (), log).gap() for log in (False, True)]
    return gaps[1] >= LOG_GAP_RATIO * gaps[0]


def wrap(name: str, width: int) -> str:
    """Return a name broken into lines after underscores.

    Args:
        name: the name.
        width: characters per line; a longer part stays whole.
    """
    lines = [""]
    for part in re.findall(r"[^_]+_?|_", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _shorten(name: str) -> str:
    return (
        name
        if len(name) <= MAX_NAME_CHARACTERS
        else f"{name[: MAX_NAME_CHARACTERS // 2]}…{name[-MAX_NAME_CHARACTERS // 2 + 1 :]}"
    )
