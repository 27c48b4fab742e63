"""What a run tells the world while it goes: one small protocol, so that the core knows no tracking library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from microdit.config.schema import Config

RunFact = str | int | float


class RunLogger(Protocol):
    """Receives everything that a run reports; called on the main process only."""

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None:
        """Called once before the first step; `facts` holds fingerprints, parameter counts, FLOPs, device."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars at `step` (the number of finished optimiser steps)."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture (H, W, 3) uint8 at `step`."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A finished file to keep."""

    def flush(self) -> None:
        """What was told is kept, whatever happens after: called before each checkpoint, which may outlive a kill."""

    def finish(self, status: str) -> None:
        """Called once at the end with 'FINISHED' or 'FAILED'."""


class NullLogger:
    """Records nothing; a base for recorders that care for a part."""

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def flush(self) -> None: ...

    def finish(self, status: str) -> None: ...
