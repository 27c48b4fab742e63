"""Runs trials in local worker processes; each gets its next trial as soon as it is free.

This is the seam for other engines: whatever takes `Job`s and tells a `Board` how they go can stand here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from sweeps.progress import Board
from sweeps.store import Launch
from sweeps.worker import GRACE, Event, Job, work

Lost = Callable[[Job, str], None]  # told of a trial whose worker died, and how


@dataclass
class Outcome:
    """Numbers of the jobs that finished, and why others did not."""

    done: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass
class _Worker:
    slot: int
    process: SpawnProcess
    channel: Connection
    job: Job | None = None
    worked: bool = False


def run_jobs(jobs: Sequence[Job], workers: int, launch: Launch, board: Board, lost: Lost) -> Outcome:
    """Runs all `jobs`, at most `workers` at once; a failing trial, or a dying worker, doesn't stop the others.

    On KeyboardInterrupt the workers close their runs and end, and it is raised again.
    """
    waiting = deque(jobs)
    devices = visible_gpus()
    outcome = Outcome()
    crew = [_hire(slot, launch, devices) for slot in range(min(workers, len(jobs)))]
    try:
        while crew:
            for channel in wait([worker.channel for worker in crew], timeout=0.5):
                worker = next(member for member in crew if member.channel is channel)
                try:
                    event = worker.channel.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    _bury(worker, outcome, board, lost)
                    if waiting and worker.worked:
                        crew.append(_hire(worker.slot, launch, devices))
                    continue
                _hear(event, worker, waiting, outcome, board)
            board.show()
        for job in waiting:  # no worker could so much as start
            outcome.failed[job.number] = "not begun: the workers died at their start"
    finally:
        _end(crew)
        board.close()
    return outcome


def visible_gpus() -> list[str]:
    """Ids for CUDA_VISIBLE_DEVICES, one a GPU that this process may use; empty on a CPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _hire(slot: int, launch: Launch, devices: Sequence[str]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its own threads
    ours, theirs = context.Pipe()
    device = devices[slot % len(devices)] if devices else None
    process = context.Process(target=work, args=(theirs, launch, device), name=f"worker {slot}")
    # Ctrl-C reaches all of a terminal's processes; a worker must not die of it before it can say so itself.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, previous)
    theirs.close()  # so that its end of the pipe closes with the process
    return _Worker(slot, process, ours)


def _hear(event: Event, worker: _Worker, waiting: deque[Job], outcome: Outcome, board: Board) -> None:
    if event.kind == "ready":
        worker.job = waiting.popleft() if waiting else None
        with contextlib.suppress(OSError):  # died meanwhile: its end of the pipe tells
            worker.channel.send(worker.job)
        if worker.job is not None:
            worker.worked = True
            board.started(worker.job.number)
        return
    assert worker.job is not None
    number = worker.job.number
    if event.kind == "progress":
        board.progress(number, event.values)
        return
    worker.job = None
    if event.kind == "done":
        outcome.done.append(number)
        board.done(number, event.values)
    else:
        outcome.failed[number] = str(event.values["error"])
        board.fail(number, outcome.failed[number])


def _bury(worker: _Worker, outcome: Outcome, board: Board, lost: Lost) -> None:
    """A worker that is gone: as it should, or in the middle of a trial."""
    worker.process.join(timeout=10)
    worker.channel.close()
    if worker.job is None:
        return
    words = f"its worker died with exit code {worker.process.exitcode} (killed, or out of memory?)"
    outcome.failed[worker.job.number] = words
    board.fail(worker.job.number, words)
    lost(worker.job, words)


def _end(crew: Sequence[_Worker]) -> None:
    """Lets workers close their runs, then ends those that don't."""
    for worker in crew:
        worker.process.terminate()
    for worker in crew:
        worker.process.join(timeout=GRACE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
