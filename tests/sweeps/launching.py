"""Launch a small study in separate processes, and read results from stores and printed lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import Trial

from sweeps.execution.queue.trial_queue import Queue, open_queue

STUDY = """
question: Does anything get lost?
arms: {a: {optimizer.lr: 1.0e-3}, b: {optimizer.lr: 2.0e-3}}
baseline: a
seeds: [0, 1]
metrics: {primary: val_loss}
"""
ONE_ARM = "{question: x, arms: {a: {}}, seeds: [0], metrics: {primary: val_loss}}"
TRIALS = "tags.`microdit.role` = 'trial'"
UNSCORED = (
    "training.steps=150 training.checkpoint_every=10 training.log_every=5 training.sample_every=0 data.train_size=64 "
    "evaluation.samples=0"
)


def start(
    folder: Path, cache: Path, settings: str = UNSCORED, workers: int = 2, output: str = "output.txt"
) -> subprocess.Popen[bytes]:
    """Start the command in `folder`; what it prints is appended to the file `output` there."""
    (folder / "mine.yaml").write_text(STUDY)
    words = ["study=mine.yaml", "scale=smoke", f"workers={workers}", f"cache_dir={cache}", *settings.split()]
    with open(folder / output, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps", *words],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def workers(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(launcher.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def opened(folder: Path) -> Queue:
    queue = open_queue(f"sqlite:///{folder / 'runs' / 'optuna.db'}", "mine/smoke/")
    assert queue is not None
    return queue


def wait_for_checkpoints(folder: Path, count: int, after: int = 0) -> None:
    """Return when `count` trials have a checkpoint of a step later than `after`."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        found = folder.glob("runs/mine/smoke/*/checkpoints/step_*/state.json")
        if len({path.parents[2] for path in found if int(path.parent.name.removeprefix("step_")) > after}) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint in ten minutes")


def claimed(queue: Queue) -> Trial:
    """Claim a trial, which must be waiting."""
    trial = queue.claim()
    assert trial is not None
    return trial


def stored_runs(root: Path | str = "runs", study: str = "mine", query: str = TRIALS, uri: str = "") -> list[Run]:
    """Return a study's runs that match MLflow's filter `query`, oldest first.

    The store is the one at `uri`, by default that of the folder `root`.
    """
    client = MlflowClient(uri or f"sqlite:///{Path(root, 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(f"microdit/{study}")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"]))


def error_line(printed: str) -> str:
    """Return the only line of `printed`, besides the waits that are reported on a slow machine."""
    [line] = [line for line in printed.splitlines() if not line.startswith("waiting for ")]
    return line


def table(folder: Path) -> dict[str, dict[str, float]]:
    """Return final metrics and loss curve of each trial, checking for one finished run and no repeated step."""
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    runs = stored_runs(folder / "runs")
    assert [run.info.status for run in runs] == ["FINISHED"] * len(runs)
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        curve = client.get_metric_history(run.info.run_id, "train/loss")
        steps = [point.step for point in curve]
        assert len(steps) == len(set(steps))
        assert run.info.run_name not in found
        finals = {k: v for k, v in run.data.metrics.items() if k.startswith("final/")}
        found[run.info.run_name] = finals | {f"loss at {point.step}": point.value for point in curve}
    return found
