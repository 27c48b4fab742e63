"""A worker process: imports torch once, then takes trials from a queue until it is empty."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from microdit.errors import MicroditError
from sweeps.store import Launch, quiet
from sweeps.trials import Trial


@dataclass(frozen=True)
class Event:
    """What a worker tells the launcher: 'started', 'progress', 'done', 'failed' or 'idle'."""

    worker: int
    kind: str
    trial: int = -1
    values: Mapping[str, Any] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Job:
    """A trial with the MLflow run it goes on with, if any."""

    number: int
    trial: Trial
    run_id: str | None
    command: str


def work(number: int, jobs: Queue[Job], events: Queue[Event], launch: Launch) -> None:
    """The worker's main function; never raises for a failing trial."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides; it ends workers itself
    quiet()
    while True:
        try:
            job = jobs.get(timeout=0.5)
        except queue.Empty:
            break
        events.put(Event(number, "started", job.number))
        events.put(run_job(number, job, events, launch))
    events.put(Event(number, "idle"))


def run_job(number: int, job: Job, events: Queue[Event], launch: Launch) -> Event:
    """Runs one trial into its MLflow run and its log file."""
    from microdit.run import run
    from sweeps.recorder import MlflowRecorder

    trial = job.trial
    folder = Path(trial.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "log.txt"
    tags = {
        "mlflow.parentRunId": launch.parent_id,
        "microdit.role": "trial",
        "microdit.trial_key": trial.key,
        "microdit.study": trial.study,
        "microdit.arm": trial.arm,
        "microdit.scale": trial.scale,
    }

    def told(step: int, values: Mapping[str, float]) -> None:
        if "train/loss" in values:
            events.put(Event(number, "progress", job.number, {"step": step, **values}))

    recorder = MlflowRecorder(
        launch.uri,
        launch.experiment_id,
        trial.name,
        tags,
        {"seed": trial.seed, **trial.params},
        job.command,
        job.run_id,
        told,
    )
    with open(log_path, "a", encoding="utf-8") as log_file, _into(log_file):
        try:
            recorder.open()
            metrics = run(trial.config, recorder)
        except Exception as error:
            trace = traceback.format_exc()
            log_file.write(trace)
            with contextlib.suppress(Exception):
                recorder.fail(type(error).__name__, str(error), trace, str(log_path))
            text = str(error) if isinstance(error, MicroditError) else f"{type(error).__name__}: {error}"
            return Event(number, "failed", job.number, {"error": text, "log": str(log_path)})
    return Event(number, "done", job.number, metrics)


@contextlib.contextmanager
def _into(stream: io.TextIOBase | Any) -> Any:
    """Everything printed or logged in a trial goes to its log file."""
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    saved = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = stream  # type: ignore[assignment]
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved
        root.removeHandler(handler)
        root.setLevel(level)
