"""Define the logger interface of a run, independent of any experiment tracker."""

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
        """Log what is known before the first step.

        Args:
            config: the settings of the run.
            facts: values by name: fingerprints, parameter counts, FLOPs, versions and the device.
        """

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image.

        Args:
            step: number of finished optimizer steps.
            name: of the image, such as "samples".
            image: (H, W, 3) uint8.
        """

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a finished file among the run's artifacts.

        Args:
            path: the file.
            folder: of the artifacts; "" is their root.
        """

    def finish(self, status: str) -> None:
        """Close the log; called once at the end.

        Args:
            status: 'FINISHED', 'FAILED' or 'KILLED'.
        """


class NullLogger(RunLogger):
    """Log nothing; a base for loggers that need only some of the methods."""

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def flush(self) -> None: ...

    def finish(self, status: str) -> None: ...
