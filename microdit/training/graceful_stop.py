"""Stop training on a signal, after the current step and with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from microdit.common.process.distributed import is_main
from microdit.common.process.signals import stop_signals
from microdit.common.process.waiting import waiting

AGREE_EVERY = 10  # steps between exchanges of requests on GPUs, since each one synchronizes them
CLOSING_SECONDS = 10.0  # how long signals are ignored while the end of a run is recorded
ECHO_SECONDS = 1.0  # how long further signals are ignored: torchrun and SLURM may both forward one


class GracefulStop:
    """Share the stop request between a signal handler and the training loop.

    Any process may be asked to stop; `agreed` makes all of them stop after the same step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._watched = False
        self._asked = 0.0
        self._closing = float("-inf")  # when the end of the run began

    def ask(self) -> None:
        """Request a stop after the current step.

        Ignored while the end of a run is recorded, and within `ECHO_SECONDS` of the first request.

        Raises:
            KeyboardInterrupt: if a stop was already requested, or if no training loop is running.
        """
        now = time.monotonic()
        if now - self._closing < CLOSING_SECONDS:
            return
        if self.requested and now - self._asked < ECHO_SECONDS:
            return
        if self.requested or not self._watched:
            raise KeyboardInterrupt
        self.requested, self._asked = True, now

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """Return whether any process was asked to stop.

        All processes must call it after the same steps.

        Args:
            accelerator: the processes of the run.
            step: finished steps. On several GPUs, requests are exchanged only every `AGREE_EVERY` steps.
        """
        if accelerator.num_processes == 1:
            return self.requested
        if accelerator.device.type != "cpu" and step % AGREE_EVERY:
            return False
        asked = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Return a context, for the end of a run, in which signals are ignored.

        They are ignored for at most `CLOSING_SECONDS`.
        """
        self._closing = time.monotonic()
        try:
            yield
        finally:
            self._closing = float("-inf")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Return a context in which the loop checks `requested` after each step."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False


@contextmanager
def handle_stop_signals() -> Iterator[GracefulStop]:
    """Yield an object that records a stop request on Ctrl-C, SIGTERM or SIGHUP.

    The previous handlers are restored afterwards. The first signal prints at once, and then every 10 s, what the
    process waits for.
    """
    stop = GracefulStop()
    ended = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        first = not stop.requested
        stop.ask()
        if first and is_main():
            os.write(2, b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n")
            threading.Thread(target=_report_until, args=(ended,), daemon=True).start()

    previous = [(number, signal.signal(number, ask)) for number in stop_signals()]
    try:
        yield stop
    finally:
        ended.set()
        for number, handler in previous:
            signal.signal(number, handler)


def _report_until(ended: threading.Event) -> None:
    with waiting("the step to end and a checkpoint to be saved"):
        ended.wait()
