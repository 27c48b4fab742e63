"""Define the logger interface of the training loop.

It keeps the core independent of any experiment tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class StepLogger(Protocol):
    """Receive the metrics of the training loop, on the main process only."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars at `step`, the number of finished optimizer steps."""

    def flush(self) -> None:
        """Write what is buffered.

        It is called before each checkpoint, so that a resumed run logs no earlier step again.
        """
