"""Stop training on a signal.

The loop ends its step, saves a checkpoint and returns.
"""

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

AGREE_EVERY = 10  # steps between two agreements on a GPU, which has to catch up for each
CLOSING_SECONDS = 10.0  # for which signals are ignored while a run is recorded as ended
ECHO_SECONDS = 1.0  # within which a second signal is the first one's echo: torchrun and SLURM may both pass it on


class GracefulStop:
    """Share the stop request between a signal handler and the training loop.

    While the loop watches, the first `ask` waits for the end of a step. A second one, or one outside the loop, raises
    KeyboardInterrupt at once. Any process may be asked to stop; all agree on the step (`agreed`).
    """

    def __init__(self) -> None:
        self.requested = False
        self._watched = False
        self._asked = 0.0
        self._closing = float("-inf")  # when the end of the run began

    def ask(self) -> None:
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
        """
        if accelerator.num_processes == 1:
            return self.requested
        if accelerator.device.type != "cpu" and step % AGREE_EVERY:
            return False
        asked = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Keep further signals from interrupting the end of a run, for `CLOSING_SECONDS`."""
        self._closing = time.monotonic()
        try:
            yield
        finally:
            self._closing = float("-inf")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Mark that the loop looks at `requested` after each step."""
        self._watched = True
        try:
            yield
        finally:
            self._watched = False


@contextmanager
def handle_stop_signals() -> Iterator[GracefulStop]:
    """Request a stop on Ctrl-C, SIGTERM and SIGHUP.

    The earlier handlers are restored afterwards.

    What the process then waits for is printed at once, and again every 10 s.
    """
    stop = GracefulStop()
    ended = threading.Event()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        first = not stop.requested
        stop.ask()
        if first and is_main():
            os.write(2, b"\nstopping: this step ends and a checkpoint is saved; Ctrl-C again stops at once\n")
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
