"""Display the progress of a sweep, read from its queue.

A terminal gets one updated line, a log file a line every few seconds.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from microdit.common.contract import IMAGES_PER_SECOND, SCORES, SECONDS, TRAIN_LOSS, final_metric
from microdit.common.finite import is_sound
from microdit.common.numbers import format_significant
from microdit.common.process.identity import readable
from microdit.common.process.progress_bar import format_seconds
from microdit.common.process.waiting import FIRST_SECONDS
from microdit.common.tables import text_table
from sweeps.execution.queue.trial_queue import ENDED, LIVE, OUTCOME, STATES, WORKER

LOG_SECONDS = 10.0  # between two lines of a log file
MIN_SHARE_FOR_ESTIMATE = 0.02  # share of the work after which the remaining time is estimated
MAX_SCORES_SHOWN = 4  # in one line


class ProgressDisplay:
    """Show the trials' states, the step of each running one, the best score and the remaining time.

    The remaining time is estimated from the training FLOPs that are left and those done since the display began.

    Args:
        costs: training FLOPs of each trial of the plan.
        primary: the metric to show, such as final/clip_fd.
        direction: whether to "minimize" or "maximize" it.
    """

    def __init__(self, costs: Sequence[float], primary: str, direction: str) -> None:
        self._costs, self._primary, self._lower = costs, primary, direction == "minimize"
        self._live = sys.stderr.isatty()
        self._begin = time.monotonic()
        self._shown = self._begin + FIRST_SECONDS - LOG_SECONDS
        self._first: dict[int, float] | None = None  # share of each trial that was done at the start
        self._reported: dict[int, int] = {}  # trial -> number of the attempt whose end was printed
        self._latest: Mapping[int, FrozenTrial] = {}
        self._width = 0

    def update(self, latest: Mapping[int, FrozenTrial]) -> None:
        """Show the queue's present state, and print a line for each trial that has ended.

        Args:
            latest: the decisive attempt of each trial, by index in the plan.
        """
        self._latest = latest
        if self._first is None:
            self._first = {order: share_done(attempt) for order, attempt in latest.items()}
            self._reported = {i: t.number for i, t in latest.items() if t.state.is_finished()}
        for order, attempt in sorted(latest.items()):
            if attempt.state.is_finished() and self._reported.get(order) != attempt.number:
                self._reported[order] = attempt.number
                self.print_line(ending(attempt))
        if time.monotonic() - self._shown >= (0.5 if self._live else LOG_SECONDS):
            self._shown = time.monotonic()
            self._show()

    def print_line(self, text: str) -> None:
        """Print a line above the updated one."""
        self._write(text)
        self._width = 0

    def close(self) -> None:
        """End the updated line of a terminal."""
        if self._live and self._width:
            print(file=sys.stderr)

    def summary(self) -> str:
        """Return the state of all trials in one line.

        An example is `2/6 done, 1:02 left, best none/seed0 1606 | none/seed1 300/1500 loss 0.412 230 images/s`.
        """
        tries = list(self._latest.values())
        done = sum(t.state in ENDED for t in tries)
        failed = sum(t.state == TrialState.FAIL for t in tries)
        text = f"{done}/{len(tries)} done" + (f", {failed} failed" if failed else "") + f", {self._left()} left"
        best = best_of(tries, self._primary, self._lower)
        text += f", best {best}" if best else ""
        return " | ".join([text, *(activity(t) for t in tries if t.state == TrialState.RUNNING)])

    def _show(self) -> None:
        states = {t.state for t in self._latest.values()}
        if not states & set(LIVE):
            return
        text = self.summary()
        if TrialState.RUNNING not in states:
            text += f" | waiting for workers to start ({time.monotonic() - self._begin:.0f} s)"
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line cannot be updated
            self._write(text, end="")
            self._width = len(text)
        else:
            self._write(text)

    def _left(self) -> str:
        first = self._first or {}
        shares = {order: share_done(attempt) for order, attempt in self._latest.items()}
        worked = sum(self._costs[i] * max(share - first.get(i, 0.0), 0.0) for i, share in shares.items())
        left = sum(self._costs[i] * (1 - share) for i, share in shares.items())
        if worked <= MIN_SHARE_FOR_ESTIMATE * (worked + left):
            return "?"
        return format_seconds((time.monotonic() - self._begin) * left / worked)

    def _write(self, text: str, end: str = "\n") -> None:
        if self._live:
            text = f"\r{text}{' ' * max(self._width - len(text), 0)}"
        print(text, end=end, file=sys.stderr, flush=True)


def share_done(attempt: FrozenTrial) -> float:
    """Return the share of a trial's steps that are done; 1 if it has ended."""
    if attempt.state.is_finished():
        return 1.0
    return float(attempt.user_attrs.get("progress", {}).get("step", 0)) / attempt.user_attrs["steps"]


def activity(attempt: FrozenTrial) -> str:
    """Return what a running trial is doing.

    This is starting, scoring, or its step, loss and speed.
    """
    facts, steps = attempt.user_attrs, attempt.user_attrs["steps"]
    progress: Mapping[str, Any] = facts.get("progress", {})
    if not progress:
        return f"{facts['name']} starting"
    if progress["step"] >= steps:
        return f"{facts['name']} scoring"
    loss, speed = progress[TRAIN_LOSS], progress[IMAGES_PER_SECOND]
    return f"{facts['name']} {progress['step']:.0f}/{steps} loss {loss:.3f} {speed:.0f} images/s"


def ending(attempt: FrozenTrial) -> str:
    """Return one line for a trial that has ended."""
    facts = attempt.user_attrs
    if attempt.state == TrialState.FAIL:
        return f"FAILED  {facts['name']}: {facts.get('error', 'unknown')}"
    if OUTCOME in facts:
        return f"{facts[OUTCOME]} {facts['name']}"
    if attempt.state == TrialState.PRUNED:
        return f"pruned  {facts['name']} at step {max(attempt.intermediate_values, default=0)}"
    final: Mapping[str, float] = facts.get("final", {})
    scores = [
        f"{name} {format_significant(final[final_metric(name)])}" for name in SCORES if final_metric(name) in final
    ][:MAX_SCORES_SHOWN]
    took = f", trained in {format_seconds(final[SECONDS])}" if SECONDS in final else ""
    reused = " (reused)" if "reused_from" in facts else ""
    return f"done    {facts['name']}{reused}{took}: {', '.join(scores) or 'not scored'}"


def best_of(tries: Sequence[FrozenTrial], primary: str, lower: bool) -> str:
    """Return the best finished trial as `none/seed0 1606`, or "" if none is scored.

    Args:
        tries: the decisive attempt of each trial.
        primary: the final metric to compare.
        lower: whether lower values are better.
    """
    scored = [
        (t.user_attrs["final"][primary], t) for t in tries if is_sound(t.user_attrs.get("final", {}).get(primary))
    ]
    if not scored:
        return ""
    value, trial = (min if lower else max)(scored, key=lambda pair: pair[0])
    return f"{trial.user_attrs['name']} {format_significant(value)}"


def status_table(latest: Mapping[int, FrozenTrial], wide: bool = False) -> str:
    """Return one row per trial: its state, step, number of tries, worker and outcome.

    Args:
        latest: the decisive attempt of each trial, by index in the plan.
        wide: whether to print all columns, however wide.
    """
    rows = [["trial", "state", "step", "tries", "worker", "note"]]
    for _, attempt in sorted(latest.items()):
        facts, state = attempt.user_attrs, STATES[attempt.state]
        step = f"{facts.get('progress', {}).get('step', 0):.0f}/{facts['steps']}" if state == "running" else ""
        worker = readable(facts[WORKER]) if state == "running" and WORKER in facts else ""
        note = "" if state in ("running", "waiting") or OUTCOME in facts else ending(attempt).partition(": ")[2]
        if state == "pruned" and OUTCOME not in facts:
            note = ending(attempt).partition(" at ")[2]
        reused = "reused" if "reused_from" in facts else facts.get(OUTCOME, state)
        rows.append([facts["name"], reused, step, str(facts.get("tries", 1)), worker, note])
    return text_table(rows, wide, left=(0, 1, 4, 5), keep=range(6))
