"""From a study to its trials, with their cost in time and money.

The function that times a network, and so loads PyTorch, is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from sweeps.planning.throughput import measure_seconds_per_image as measure_seconds_per_image

PUBLIC = {"measure_seconds_per_image": "throughput"}

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
