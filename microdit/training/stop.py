"""Stopping politely: a signal asks, the loop ends its step, keeps a checkpoint, and leaves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

AGREE_EVERY = 10  # steps between two agreements on a GPU, which has to catch up for each
ECHO_SECONDS = 1.0  # within which a second signal is the first one's echo: torchrun and SLURM may both pass it on


class StopRequest:
    """What a signal handler and the training loop share.

    While the loop watches, the first `ask` waits for the end of a step; a second one, or one outside the loop (where
    nothing would be lost), raises KeyboardInterrupt at once. Of several processes any may be asked: they `agreed`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._watched = False
        self._asked = 0.0

    def ask(self) -> None:
        now = time.monotonic()
        if self.requested and now - self._asked < ECHO_SECONDS:
            return
        if self.requested or not self._watched:
            raise KeyboardInterrupt
        self.requested, self._asked = True, now

    def agreed(self, accelerator: Accelerator, step: int) -> bool:
        """Whether any process has been asked; all must come here after the same steps, and all get the same answer."""
        if accelerator.num_processes == 1:
            return self.requested
        if accelerator.device.type != "cpu" and step % AGREE_EVERY:
            return False
        asked = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)

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
