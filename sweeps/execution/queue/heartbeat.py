"""The heartbeat of a claimed trial, and its progress, from a thread beside the training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from types import TracebackType

from sweeps.execution.queue.optuna_storage import BEAT
from sweeps.execution.queue.trial_queue import Queue

TELL = 2.0  # seconds between two reports of progress


class Heartbeat:
    """Beats while the trial runs; `lost` turns true, and the process gets SIGTERM, where the trial was taken away.

    A heartbeat that fails (the store is away) is tried again: the training goes on meanwhile.
    """

    def __init__(self, queue: Queue, trial_id: int) -> None:
        self.progress: Mapping[str, float] = {}
        self.lost = False
        self._queue, self._trial = queue, trial_id
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"heart of {trial_id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    def rest(self) -> None:
        """No more beats: to be called before the trial's end is told, which would look like its loss."""
        self._end.set()
        self._thread.join(timeout=2 * BEAT)

    def _live(self) -> None:
        told: Mapping[str, float] = {}
        beaten = time.monotonic()
        while not self._end.wait(TELL):
            with contextlib.suppress(Exception):
                if self.progress is not told:
                    told = self.progress
                    self._queue.storage.set_trial_user_attr(self._trial, "progress", dict(told))
                if time.monotonic() - beaten >= BEAT:
                    beaten = time.monotonic()
                    if not self._queue.beat(self._trial) and not self._end.is_set():
                        self.lost = True
                        os.kill(os.getpid(), signal.SIGTERM)
                        return
