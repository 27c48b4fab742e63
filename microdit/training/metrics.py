"""Average the logged values of the training loop and measure its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from microdit.common.errors import DivergenceError
from microdit.training.checkpoint import PartialLogWindow, TrainState
from microdit.training.run_files import checkpoints


class StepMetrics:
    """Average the steps' values and measure speed since the last log.

    Values stay on the device until they are logged, so a GPU does not wait at every step. The first non-finite step is
    recorded.
    """

    def __init__(self, batch_size: int, state: TrainState, device: torch.device) -> None:
        self._batch_size = batch_size
        self._first_step, self._base = state.step, state.seconds
        self._begin = time.monotonic()
        before = state.interval
        self._since, self._count = self._begin - before.seconds, before.steps
        self._names = tuple(before.sums)
        # A scalar until the first step shows how many readings there are.
        self._sums = torch.tensor([*before.sums.values()] if before.sums else 0.0, device=device)
        self._bad = torch.zeros((), dtype=torch.long, device=device)
        self._done = 0

    def add(self, done: int, readings: Mapping[str, Tensor]) -> None:
        """Add the values of one step.

        Args:
            done: finished steps, this one included.
            readings: scalars on the device; every step has the same names.
        """
        self._names = tuple(readings)
        values = torch.stack([*readings.values()])
        self._sums = self._sums + values
        bad = ~values.isfinite().all()
        self._bad = torch.where(bad & (self._bad == 0), done, self._bad)
        self._count += 1
        self._done = done

    def read(self, accelerator: Accelerator, folder: Path) -> dict[str, float]:
        """Return means since the last call, over all processes.

        Args:
            accelerator: the processes of the run.
            folder: of the run's checkpoints, for the error message.

        Returns:
            Means by name, and `images_per_second` over all processes.

        Raises:
            DivergenceError: as `check`.
        """
        self.check(folder)
        means = (accelerator.reduce(self._sums, "mean") / self._count).tolist()
        now = time.monotonic()
        speed = self._count * self._batch_size / max(now - self._since, 1e-9)
        self._sums = torch.zeros_like(self._sums)
        self._since, self._count = now, 0
        return dict(zip(self._names, means, strict=True)) | {"images_per_second": speed}

    def interval(self, accelerator: Accelerator) -> PartialLogWindow:
        """Return the sums since the last `read`, averaged over all processes."""
        sums = accelerator.reduce(self._sums, "mean").tolist() if self._count else []
        return PartialLogWindow(
            dict(zip(self._names, sums, strict=bool(sums))), self._count, time.monotonic() - self._since
        )

    def check(self, folder: Path) -> None:
        """Check that all steps since the start were finite.

        Args:
            folder: of the run's checkpoints, for the error message.

        Raises:
            DivergenceError: if the loss or gradient of a step was NaN or infinite; names the first one.
        """
        bad = int(self._bad)
        if bad:
            good = checkpoints(folder)
            where = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
            raise DivergenceError(f"loss or gradient is not finite at step {bad}; {where}")

    def seconds(self) -> float:
        """Return the training time in seconds, over all resumptions."""
        return self._base + time.monotonic() - self._begin

    def seconds_left(self, steps: int) -> float:
        """Return the estimated seconds until the last step.

        Args:
            steps: length of the run.
        """
        spent = time.monotonic() - self._begin
        return spent / max(self._done - self._first_step, 1) * (steps - self._done)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context whose time does not count as training."""
        entered = time.monotonic()
        try:
            yield
        finally:
            away = time.monotonic() - entered
            self._begin += away
            self._since += away
