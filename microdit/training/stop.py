"""Stopping politely: a signal asks, the loop ends its step, keeps a checkpoint, and leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """What a signal handler and the training loop share.

    While the loop watches, the first `ask` waits for the end of a step; a second one, or one outside the loop (where
    nothing would be lost), raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._watched = False

    def ask(self) -> None:
        if self.requested or not self._watched:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The loop looks at `requested` after each step."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
