"""Handle the signals of a launch: Ctrl-C, SIGTERM and SIGHUP all stop it in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from microdit.common.process.signals import stop_signals

SHIELD_SECONDS = 10.0  # in which further signals do not interrupt the end of a launch


@contextmanager
def interruptible() -> Iterator[None]:
    """Return a context in which every stop signal raises KeyboardInterrupt."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(stop), _repeated_if_lost():
        yield


@contextmanager
def _repeated_if_lost() -> Iterator[None]:
    """Send SIGINT again if Python ignored a KeyboardInterrupt, as it does in callbacks of weak references."""
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def undisturbed(work: str) -> Iterator[None]:
    """Return a context that stop signals do not interrupt at first.

    A signal prints what is being done. After `SHIELD_SECONDS` it raises KeyboardInterrupt.

    Args:
        work: what the block does, such as "closing the launch's run".
    """
    begun = time.monotonic()

    def defer(_signal: int, _frame: FrameType | None) -> None:
        if time.monotonic() - begun > SHIELD_SECONDS:
            raise KeyboardInterrupt
        os.write(2, f"still {work}; Ctrl-C works again after {SHIELD_SECONDS:.0f} s\n".encode())

    with _handled(defer):
        yield


@contextmanager
def _handled(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = stop_signals()
    previous = [(number, signal.signal(number, handler)) for number in numbers]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, before in previous:
            signal.signal(number, before)
