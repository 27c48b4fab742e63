"""Report on stderr what the program is waiting for.

The first line appears after 2 s, further ones every 10 s, until the wait ends.

    with waiting("workers to save a checkpoint and stop"):
        process.join()

One daemon thread serves the whole process, so a call that blocks inside a library is reported too. Of nested waits in
one thread, only the innermost is reported.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_SECONDS = 2.0  # from the start of a wait to its first line
AGAIN_SECONDS = 10.0  # between its later lines


class Wait:
    """Describe a wait in progress; assign `what` to update its next line."""

    def __init__(self, what: str, begun: float, due: float) -> None:
        self.what, self.begun, self.due = what, begun, due


def _say(text: str) -> None:
    stream = sys.stderr  # looked up for each line: a trial's output is redirected to its log file
    for target in (stream, getattr(stream, "terminal", None)):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or without a reader
            if target is not None:
                print(f"\r\033[K{text}" if target.isatty() else text, file=target, flush=True)


class Reporter:
    """Print lines about the waits of this process.

    One thread prints them; it starts when the first wait begins.
    """

    def __init__(
        self, say: Callable[[str], None] = _say, first: float = FIRST_SECONDS, again: float = AGAIN_SECONDS
    ) -> None:
        self._say, self._first, self._again = say, first, again
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waits: dict[int, list[Wait]] = {}  # by thread, innermost last
        self._thread: threading.Thread | None = None
        self._wake = float("inf")  # when the thread looks next

    @contextmanager
    def waiting(self, what: str) -> Iterator[Wait]:
        """Report a wait until the block ends.

        Args:
            what: the awaited thing, printed after "waiting for".

        Yields:
            The wait, whose text can be changed.
        """
        thread, now = threading.get_ident(), time.monotonic()
        wait = Wait(what, now, now + self._first)
        with self._changed:
            self._waits.setdefault(thread, []).append(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._report, name="waiting", daemon=True)
                self._thread.start()
            elif wait.due < self._wake:
                self._changed.notify()
        try:
            yield wait
        finally:
            with self._changed:
                own = self._waits[thread]
                own.remove(wait)
                if not own:
                    del self._waits[thread]

    def _report(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                lines = []
                for wait in (own[-1] for own in self._waits.values()):
                    if now >= wait.due:
                        wait.due = now + self._again
                        lines.append(f"waiting for {wait.what} ({now - wait.begun:.0f} s)")
                if not lines:
                    self._wake = min((own[-1].due for own in self._waits.values()), default=float("inf"))
                    self._changed.wait(None if self._wake == float("inf") else max(self._wake - now, 0.01))
                    continue
            for line in lines:
                self._say(line)


_reporter = Reporter()
os.register_at_fork(after_in_child=_reporter._reset)  # a forked child has neither the thread nor the waits


def waiting(what: str) -> contextlib.AbstractContextManager[Wait]:
    """Report on stderr that the program waits, until the block ends.

    Args:
        what: the awaited thing, printed after "waiting for".

    Returns:
        A context manager of the wait, whose text can be changed.
    """
    return _reporter.waiting(what)
