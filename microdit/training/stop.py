"""Stopping politely: a signal asks, the loop ends its step, keeps a checkpoint, and leaves."""

from __future__ import annotations

import signal
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


@contextmanager
def asked_by_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM (a preempted job) ask for a stop; the handlers from before come back afterwards."""
    stop = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda _signal, _frame: stop.ask()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
