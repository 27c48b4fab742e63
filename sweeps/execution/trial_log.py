"""Write a trial's log file: everything printed or logged while it runs, with passwords masked."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from microdit.common.stores.secrets import masked


class MaskedStream(io.TextIOBase):
    """Write masked text to a stream.

    Args:
        stream: the stream that gets the text.
        terminal: a stream that also gets reports of waits.
    """

    def __init__(self, stream: TextIO, terminal: TextIO | None = None) -> None:
        self._stream, self.terminal = stream, terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def redirect_output(stream: TextIO) -> Iterator[None]:
    """Return a context that sends everything printed or logged to `stream`, masked."""
    shown: TextIO = MaskedStream(stream, sys.stderr)  # type: ignore[assignment]
    handler = logging.StreamHandler(shown)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    saved = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = shown
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved
        root.removeHandler(handler)
        root.setLevel(level)
