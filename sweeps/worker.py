"""A worker process: imports torch once, then asks for one trial after another until there is none left."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from microdit.errors import MicroditError
from sweeps.store import Launch, quiet
from sweeps.trials import Trial

GRACE = 20.0  # seconds that a trial has to close its run when it must stop


@dataclass(frozen=True)
class Event:
    """What a worker tells its launcher: 'ready', 'progress', 'done' or 'failed'."""

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A trial with the MLflow run it goes on with, if any, and which attempt this is."""

    number: int
    trial: Trial
    run_id: str | None
    attempt: int
    command: str


def work(channel: Connection, launch: Launch, device: str | None) -> None:
    """The worker's main function: sends events, receives jobs, ends at None; no failing trial raises here."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before anything touches CUDA
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    quiet()
    try:
        while True:
            channel.send(Event("ready"))
            job = channel.recv()
            if job is None:
                break
            channel.send(run_job(job, launch, channel))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass


def run_job(job: Job, launch: Launch, channel: Connection) -> Event:
    """Runs one trial into its MLflow run and its log file; what it raises, but for an interruption, is recorded."""
    from microdit.config import save_config
    from microdit.run import run

    trial = job.trial
    folder = Path(trial.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(trial.config, folder / "config.yaml")  # the rerun command needs it, whatever happens
    recorder = _recorder(job, launch, channel)
    with open(folder / "log.txt", "a", encoding="utf-8", buffering=1) as log, _into(log):
        try:
            recorder.open()
            return Event("done", run(trial.config, recorder))
        except KeyboardInterrupt:
            recorder.finish("KILLED")
            raise
        except Exception as error:
            trace = traceback.format_exc()
            log.write(trace)
            known = isinstance(error, MicroditError)
            words = " ".join(str(error).split()) if known else f"{type(error).__name__}: {error}"
            with contextlib.suppress(Exception):  # the store itself may be what failed
                recorder.fail(words, trace)
            return Event("failed", {"error": words})


def _recorder(job: Job, launch: Launch, channel: Connection) -> Any:
    from sweeps.recorder import MlflowRecorder, RunSpec

    trial = job.trial
    folder = Path(trial.config.output_dir).resolve()
    tags = {
        "mlflow.parentRunId": launch.parent_id,
        "microdit.role": "trial",
        "microdit.trial_key": trial.key,
        "microdit.study": trial.study,
        "microdit.arm": trial.arm,
        "microdit.scale": trial.scale,
        "microdit.attempt": str(job.attempt),
        "microdit.rerun": f"microdit train {folder / 'config.yaml'}",
        "microdit.log": str(folder / "log.txt"),
    }

    def told(step: int, values: Mapping[str, float]) -> None:
        if "train/loss" in values:
            channel.send(Event("progress", {"step": step, **values}))

    spec = RunSpec(launch.experiment_id, trial.name, tags, {"seed": trial.seed, **trial.params}, job.command)
    return MlflowRecorder(launch.uri, spec, job.run_id, told)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows closes the run
    raise KeyboardInterrupt


def _end_with_the_launcher() -> None:
    """A launcher that is gone (killed, say) must not leave workers that a second launch would compete with."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


@contextlib.contextmanager
def _into(stream: TextIO) -> Iterator[None]:
    """Everything printed or logged in a trial goes to its log file."""
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    saved = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = stream
    try:
        yield
    finally:
        sys.stdout, sys.stderr = saved
        root.removeHandler(handler)
        root.setLevel(level)
