"""One view of a running sweep: a line that renews itself at a terminal, a line now and then in a log file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from microdit.training.progress import format_seconds
from sweeps.summary import digits
from sweeps.trials import Trial

PLAIN_SECONDS = 10.0  # between two lines of a log file
ENOUGH = 0.02  # share of the work after which the time left can be judged
SHOWN = ("fd", "clip_fd", "clip_score", "class_accuracy", "val_loss")


class Board:
    """Trials done, running and failed, the step of each running one, and the time left.

    The time left is judged by training FLOPs: those of all trials against those done so far and the time they took.
    """

    def __init__(self, trials: Sequence[Trial], costs: Sequence[float]) -> None:
        """`costs`: of each trial, 0 for one that needn't run."""
        self.trials = trials
        self.costs = costs
        self._share: dict[int, float] = {}  # trial -> share of its steps done
        self._first: dict[int, float] = {}  # share that was there already when it started
        self._values: dict[int, Mapping[str, Any]] = {}
        self._running: list[int] = []
        self._done = sum(cost == 0 for cost in costs)
        self._failed = 0
        self._live = sys.stderr.isatty()
        self._begin = self._shown = time.monotonic()
        self._width = 0

    def started(self, number: int) -> None:
        self._running.append(number)
        self._share[number] = 0.0

    def progress(self, number: int, values: Mapping[str, Any]) -> None:
        """`values`: step, train/loss and images_per_second."""
        self._values[number] = values
        self._share[number] = values["step"] / self.trials[number].config.training.steps
        self._first.setdefault(number, self._share[number])

    def done(self, number: int, metrics: Mapping[str, float]) -> None:
        """The end of a trial is a line of its own."""
        self._done += 1
        scores = [f"{name} {digits(metrics[f'final/{name}'])}" for name in SHOWN if f"final/{name}" in metrics]
        took = format_seconds(metrics["cost/seconds"])
        self._end(number, f"done    {self.trials[number].name}, trained in {took}: {', '.join(scores) or 'not scored'}")

    def fail(self, number: int, words: str) -> None:
        self._failed += 1
        self._end(number, f"FAILED  {self.trials[number].name}: {words}")

    def show(self) -> None:
        """Prints the present state, if it is time to."""
        if not self._running or time.monotonic() - self._shown < (0.5 if self._live else PLAIN_SECONDS):
            return
        self._shown = time.monotonic()
        text = self.summary()
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line can't be renewed
            self._write(text, end="")
            self._width = len(text)
        else:
            self._write(text)

    def close(self) -> None:
        if self._live and self._width:
            print(file=sys.stderr)

    def summary(self) -> str:
        """`2/6 done, 1:02 left | none/seed1 300/1500 loss 0.412 230/s | ...`"""
        failed = f", {self._failed} failed" if self._failed else ""
        parts = [self._of(number) for number in self._running]
        return " | ".join([f"{self._done}/{len(self.trials)} done{failed}, {self._left()} left", *parts])

    def _of(self, number: int) -> str:
        trial, values = self.trials[number], self._values.get(number)
        if values is None:
            return f"{trial.name} starting"
        steps = trial.config.training.steps
        if values["step"] >= steps:
            return f"{trial.name} scoring"
        speed = values["images_per_second"]
        return f"{trial.name} {values['step']:.0f}/{steps} loss {values['train/loss']:.3f} {speed:.0f} images/s"

    def _left(self) -> str:
        spent = time.monotonic() - self._begin
        finished = sum(self.costs[number] * share for number, share in self._share.items())
        worked = sum(self.costs[n] * (share - self._first.get(n, 0.0)) for n, share in self._share.items())
        known = worked > ENOUGH * sum(self.costs)
        return format_seconds(spent * (sum(self.costs) - finished) / worked) if known else "?"

    def _end(self, number: int, text: str) -> None:
        self._share[number] = 1.0
        self._running.remove(number)
        self._write(text)
        self._width = 0

    def _write(self, text: str, end: str = "\n") -> None:
        if self._live:
            text = f"\r{text}{' ' * max(self._width - len(text), 0)}"
        print(text, end=end, file=sys.stderr, flush=True)
