"""Define the logger interface of a whole run.

It keeps the core independent of any experiment tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from microdit.config.schema import Config
from microdit.training.logger import StepLogger

RunFact = str | int | float


class RunLogger(StepLogger, Protocol):
    """Receive everything that a run reports; called on the main process only."""

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None:
        """Log `facts` once before the first step.

        They are fingerprints, parameter counts, FLOPs and the device.
        """

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image (H, W, 3) uint8 at `step`."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a finished file in `folder` of the run's artifacts."""

    def finish(self, status: str) -> None:
        """Close the log with 'FINISHED', 'FAILED' or 'KILLED'; called once at the end."""


class NullLogger:
    """Log nothing; a base for loggers that need only some of the methods."""

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def flush(self) -> None: ...

    def finish(self, status: str) -> None: ...
