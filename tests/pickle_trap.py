"""Provide an object that shows whether it was unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PickleTrap:
    """Create a file when unpickled, which loading must prevent."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)
