"""Send the heartbeat and the progress of a claimed trial from a thread during training."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping

from sweeps.execution.queue.optuna_storage import HEARTBEAT_SECONDS
from sweeps.execution.queue.trial_queue import Queue

REPORT_SECONDS = 2.0  # between two reports of progress


class Heartbeat:
    """Send heartbeats while the trial runs.

    If another worker has claimed the trial, `lost` is set and this process gets SIGTERM. A heartbeat that fails because
    the store is unreachable is retried while training continues.
    """

    def __init__(self, queue: Queue, trial_id: int) -> None:
        self.progress: Mapping[str, float] = {}
        self.lost = False
        self._queue, self._trial = queue, trial_id
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {trial_id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the heartbeats.

        Call this before the trial is ended; otherwise the ending looks like the loss of the trial.
        """
        self._end.set()
        self._thread.join(timeout=2 * HEARTBEAT_SECONDS)

    def _run(self) -> None:
        sent: Mapping[str, float] = {}
        last_beat = time.monotonic()
        while not self._end.wait(REPORT_SECONDS):
            with contextlib.suppress(Exception):
                if self.progress is not sent:
                    sent = self.progress
                    self._queue.storage.set_trial_user_attr(self._trial, "progress", dict(sent))
                if time.monotonic() - last_beat >= HEARTBEAT_SECONDS:
                    last_beat = time.monotonic()
                    if not self._queue.send_heartbeat(self._trial) and not self._end.is_set():
                        self.lost = True
                        os.kill(os.getpid(), signal.SIGTERM)
                        return
