"""Runs trials in local worker processes; each pulls its next trial as soon as it is free.

This is the seam for other engines: whatever runs `Job`s and reports `Event`s can stand here.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

from microdit.errors import MicroditError
from sweeps.progress import Board
from sweeps.store import Launch
from sweeps.worker import Event, Job, work


class Interrupted(MicroditError):
    """The user ended the sweep; what is finished stays, and the same command goes on."""


@dataclass
class Outcome:
    """Numbers of the jobs that finished, and why others did not."""

    done: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], workers: int, launch: Launch, board: Board) -> Outcome:
    """Runs all `jobs`, at most `workers` at once; a failing one, or a dying worker, does not stop the others."""
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its own threads
    pending = context.Queue()
    events = context.Queue()
    for job in jobs:
        pending.put(job)
    count = min(workers, len(jobs))
    processes = {
        number: context.Process(target=work, args=(number, pending, events, launch), daemon=True)
        for number in range(count)
    }
    outcome = Outcome()
    running: dict[int, int] = {}  # worker -> job number
    for process in processes.values():
        process.start()
    try:
        while processes:
            try:
                _take(events.get(timeout=1.0), outcome, running, processes, board)
            except queue.Empty:
                _bury(processes, running, outcome, board, context, pending, events, launch)
            board.show()
    except KeyboardInterrupt:
        for process in processes.values():
            process.terminate()
        raise Interrupted("interrupted; the same command goes on where it stopped") from None
    finally:
        for process in processes.values():
            process.join(timeout=5)
        board.close()
    return outcome


def _take(event: Event, outcome: Outcome, running: dict[int, int], processes: dict, board: Board) -> None:
    board.tell(event)
    if event.kind == "started":
        running[event.worker] = event.trial
    elif event.kind == "done":
        outcome.done.append(event.trial)
        running.pop(event.worker, None)
    elif event.kind == "failed":
        outcome.failed[event.trial] = str(event.values["error"])
        running.pop(event.worker, None)
    elif event.kind == "idle":
        processes.pop(event.worker).join(timeout=30)


def _bury(processes, running, outcome, board, context, pending, events, launch) -> None:  # type: ignore[no-untyped-def]
    """A worker that died without a word: its trial is counted as failed, and another takes its place."""
    for number, process in list(processes.items()):
        if process.is_alive():
            continue
        trial = running.pop(number, None)
        if trial is not None:
            words = f"its worker died with exit code {process.exitcode} (killed, or out of memory?)"
            _take(Event(number, "failed", trial, {"error": words}), outcome, running, processes, board)
        del processes[number]
        if not pending.empty():
            replacement = max([number, *processes]) + 1
            processes[replacement] = context.Process(
                target=work, args=(replacement, pending, events, launch), daemon=True
            )
            processes[replacement].start()
