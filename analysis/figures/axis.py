"""The horizontal axis of a study's figure: numbers, numbers over decades, or names in a row."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 20  # a range of this factor or more is drawn on a logarithmic axis
LOG_GAP_RATIO = 2.0  # times the least gap that a linear axis has, from which a logarithmic one is taken below that
TICKS = 9  # values that get a tick each
CHARACTERS = 105  # that fit side by side below the panels of a page
MIN_TICK_GAP = 0.06  # of the axis between two values: less leaves no room for their numbers, even slanted
LONGEST = 18  # characters of a slanted name


@dataclass(frozen=True)
class StudyAxis:
    """Where the values of x stand. `names`: values that aren't numbers, in order; empty where all are numbers."""

    values: tuple[float, ...]
    names: tuple[str, ...]
    log: bool
    panels: int = 3  # of the page that this axis shares

    @classmethod
    def of(cls, x: pd.Series, panels: int = 3) -> StudyAxis:
        """The axis for a column of numbers or names."""
        found = list(dict.fromkeys(x))
        if not found or not all(isinstance(value, float) for value in found):
            return cls(tuple(float(i) for i in range(len(found))), tuple(str(value) for value in found), False, panels)
        values = tuple(sorted(found))
        return cls(values, (), _logarithmic(values), panels)

    def place(self, value: Any, shift: float = 0.0) -> float:
        """Where `value` is drawn, moved to the right by `shift`, a fraction of the axis."""
        if self.names:
            return self.values[self.names.index(str(value))] + shift * max(1, len(self.names) - 1)
        if self.log:
            return value * (self.values[-1] / self.values[0]) ** shift
        return value + shift * ((self.values[-1] - self.values[0]) or 1.0)

    def mark(self, axis: Axes) -> None:
        """Ticks at the values, with their names or numbers, slanted and shortened where they would touch."""
        if self.log:
            axis.set_xscale("log")
        if self.names:
            axis.set_xlim(-0.5, len(self.names) - 0.5)
        else:
            axis.margins(x=0.14)
        if not self.names and (len(self.values) > TICKS or self.gap() < MIN_TICK_GAP):
            return
        axis.minorticks_off()
        room = self.gap() * CHARACTERS / max(self.panels, 1.5) * 0.75
        labels = [wrap(name, int(room)) for name in self.names] or self._numbers()
        if max(len(line) for label in labels for line in label.split("\n")) <= room:
            axis.set_xticks(self.values, labels)
            return
        axis.set_xticks(self.values, [_shorten(name) for name in self.names] or labels)
        for text in axis.get_xticklabels():
            text.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")

    def _numbers(self) -> list[str]:
        """The values in as few digits as tell them apart, three at least."""
        for digits in (3, 4, 5):
            short = [f"{value:g}" if value >= 1000 else f"{value:.{digits}g}" for value in self.values]
            if len(set(short)) == len(short):
                return short
        return [f"{value:g}" for value in self.values]

    def gap(self) -> float:
        """Least distance between neighbours, as a fraction of the axis."""
        if self.names:
            return 1 / len(self.names)
        at = [math.log(value) for value in self.values] if self.log else list(self.values)
        return min(((b - a) / (at[-1] - at[0]) for a, b in itertools.pairwise(at)), default=1.0)


def _logarithmic(values: tuple[float, ...]) -> bool:
    """Whether positive values reach over decades, or stand so much more evenly there, as 1, 2, 4, 8 do."""
    if values[0] <= 0 or values[-1] / values[0] >= DECADES:
        return values[0] > 0
    gaps = [StudyAxis(values, (), log).gap() for log in (False, True)]
    return gaps[1] >= LOG_GAP_RATIO * gaps[0]


def wrap(name: str, width: int) -> str:
    """Broken into lines after its underscores."""
    lines = [""]
    for part in re.findall(r"[^_]+_?|_", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 + 1 :]}"
