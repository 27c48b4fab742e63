"""The horizontal axis of a study's figure: numbers, numbers over decades, or names in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 20  # a range of this factor or more is drawn on a logarithmic axis
TICKS = 9  # values that get a tick each
CHARACTERS = 26  # of all names together, before they are slanted


@dataclass(frozen=True)
class Across:
    """Where the values of x stand. `names`: values that aren't numbers, in order; empty where all are numbers."""

    values: tuple[float, ...]
    names: tuple[str, ...]
    log: bool

    @classmethod
    def of(cls, x: pd.Series) -> Across:
        """The axis for a column of numbers or names."""
        found = list(dict.fromkeys(x))
        if not all(isinstance(value, float) for value in found):
            return cls(tuple(float(i) for i in range(len(found))), tuple(str(value) for value in found), False)
        values = tuple(sorted(found))
        return cls(values, (), values[0] > 0 and values[-1] / values[0] >= DECADES)

    def place(self, value: Any, shift: float = 0.0) -> float:
        """Where `value` is drawn, moved to the right by `shift`, a fraction of the axis."""
        if self.names:
            return self.values[self.names.index(str(value))] + shift * max(1, len(self.names) - 1)
        if self.log:
            return value * (self.values[-1] / self.values[0]) ** shift
        return value + shift * ((self.values[-1] - self.values[0]) or 1.0)

    def mark(self, axis: Axes) -> None:
        """Ticks at the values, with their names or numbers."""
        labels = list(self.names) or [f"{value:g}" for value in self.values]
        if self.log:
            axis.set_xscale("log")
            axis.minorticks_off()
        if self.names or len(labels) <= TICKS:
            axis.set_xticks(self.values, labels)
        if self.names:
            axis.set_xlim(-0.5, len(self.names) - 0.5)
        if self.names and sum(len(label) for label in labels) > CHARACTERS:
            for text in axis.get_xticklabels():
                text.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
