"""One view of a running sweep: a line that renews itself at a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from microdit.training.progress import format_seconds
from sweeps.trials import Trial
from sweeps.worker import Event

PLAIN_SECONDS = 15.0


class Board:
    """Trials done, running and failed, the step of each running one, and the time left.

    The time left is judged by training FLOPs: those of all trials against those done so far and the time they took.
    """

    def __init__(self, trials: Sequence[Trial], costs: Sequence[float]) -> None:
        self.trials = trials
        self.costs = costs
        self.share: dict[int, float] = {}  # trial -> share of its steps done
        self.first: dict[int, float] = {}  # share that was there already when it started
        self.values: dict[int, dict[str, float]] = {}
        self.done: set[int] = set()
        self.failed: set[int] = set()
        self.running: list[int] = []
        self._live = sys.stderr.isatty()
        self._begin = self._shown = time.monotonic()
        self._width = 0

    def tell(self, event: Event) -> None:
        """Takes one worker event in; the end of a trial is a line of its own."""
        if event.kind == "idle":
            return
        trial = self.trials[event.trial]
        if event.kind == "started":
            self.running.append(event.trial)
            self.share[event.trial] = 0.0
        elif event.kind == "progress":
            self.values[event.trial] = dict(event.values)
            self.share[event.trial] = event.values["step"] / trial.config.training.steps
            self.first.setdefault(event.trial, self.share[event.trial])
        else:
            (self.done if event.kind == "done" else self.failed).add(event.trial)
            self.share[event.trial] = 1.0
            if event.trial in self.running:
                self.running.remove(event.trial)
            self._line(self._ended(event, trial))

    def _ended(self, event: Event, trial: Trial) -> str:
        if event.kind == "failed":
            return f"FAILED  {trial.name}: {event.values['error']}"
        values = event.values
        scores = [f"{k.removeprefix('final/')} {v:.4g}" for k, v in values.items() if k.startswith("final/")]
        wanted = [s for s in scores if s.split()[0] in ("fd", "clip_fd", "clip_score", "class_accuracy")]
        return f"done    {trial.name} in {format_seconds(values['cost/seconds'])}: {', '.join(wanted)}"

    def show(self) -> None:
        """Prints the present state, if it is time to."""
        interval = 0.5 if self._live else PLAIN_SECONDS
        if time.monotonic() - self._shown < interval:
            return
        self._shown = time.monotonic()
        text = self._summary()
        if self._live:
            padding = " " * max(self._width - len(text), 0)
            self._width = len(text)
            print(f"\r{text}{padding}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live and self._width:
            print(file=sys.stderr)

    def _summary(self) -> str:
        parts = []
        for number in self.running:
            trial, values = self.trials[number], self.values.get(number)
            if values is None:
                parts.append(f"{trial.name} starting")
                continue
            steps = trial.config.training.steps
            if values["step"] >= steps:
                parts.append(f"{trial.name} scoring")
            else:
                speed = values["images_per_second"]
                parts.append(f"{trial.name} {values['step']:.0f}/{steps} loss {values['train/loss']:.3f} {speed:.0f}/s")
        head = f"{len(self.done)}/{len(self.trials)} done"
        if self.failed:
            head += f", {len(self.failed)} failed"
        return f"{head}, {self._left()} left | " + " | ".join(parts)

    def _left(self) -> str:
        spent = time.monotonic() - self._begin
        total = sum(self.costs)
        finished = sum(self.costs[number] * share for number, share in self.share.items())
        worked = sum(self.costs[n] * (share - self.first.get(n, 0.0)) for n, share in self.share.items())
        return format_seconds(spent * (total - finished) / worked) if worked > 0 else "?"

    def _line(self, text: str) -> None:
        if self._live:
            print(f"\r{text}{' ' * max(self._width - len(text), 0)}", file=sys.stderr, flush=True)
            self._width = 0
        else:
            print(text, file=sys.stderr, flush=True)
