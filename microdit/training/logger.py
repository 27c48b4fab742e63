"""Define the logger interface of the training loop.

It keeps the core independent of experiment trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class StepLogger(Protocol):
    """Receive the metrics of the training loop, on the main process only."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars.

        Args:
            step: finished optimizer steps.
            values: scalars by metric name.
        """

    def flush(self) -> None:
        """Write buffered values.

        Called before each checkpoint, so that a resumed run logs no step twice.
        """
