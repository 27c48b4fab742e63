"""Detect silent workers by unchanged heartbeats, timed on this process's monotonic clock.

A heartbeat's own timestamp is never compared with a clock, because the clocks of machines differ and may be changed.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from typing import TypeVar

Owner = TypeVar("Owner", bound=Hashable)


class Silence:
    """Watch values that change while their owners are alive.

    Args:
        patience: seconds without a change after which an owner counts as silent.
        longest_gap: seconds between two calls after which all watching begins anew. If this process could not read the
            values, the owners may have been unable to write them.
    """

    def __init__(self, patience: float, longest_gap: float) -> None:
        self._patience, self._longest_gap = patience, longest_gap
        self._since: dict[Hashable, tuple[object, float]] = {}  # owner -> value and when it was first seen
        self._looked = -float("inf")

    def silent(self, values: Mapping[Owner, object]) -> set[Owner]:
        """Return the owners whose value has not changed for `patience` seconds.

        Args:
            values: the present value of each owner; call this whenever they are read.
        """
        now = time.monotonic()
        seen = self._since if now - self._looked <= self._longest_gap else {}
        self._looked = now
        self._since = {
            owner: seen[owner] if owner in seen and seen[owner][0] == value else (value, now)
            for owner, value in values.items()
        }
        return {owner for owner in values if now - self._since[owner][1] > self._patience}
