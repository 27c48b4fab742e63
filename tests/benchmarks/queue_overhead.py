"""Measure the overhead of queue and logging: seconds per trial, and milliseconds per logged metric.

    python tests/benchmarks/queue_overhead.py

Trials of one step at `smoke` scale run as by the real command; both stores are fresh sqlite files in a temporary
folder. A worker's first trial is left out (it imports torch and loads the networks).
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from microdit.common.tables import text_table
from sweeps.config.study import Figure, Metrics, Study, StudySpec
from sweeps.execution.launch import launch_study
from sweeps.execution.launch_spec import Options
from sweeps.execution.queue.trial_queue import WORKER, open_queue
from sweeps.tracking.mlflow_store import Store

TRIALS = 100
WORKERS = (1, 2, 4)
POINTS = 5000  # metrics logged to time one
SETTINGS = ("training.steps=1", "training.sample_every=0", "training.sample_count=1", "training.checkpoint_every=0")
UNSCORED = ("evaluation.samples=0", "training.val_images=8")


def bench(trials: int = TRIALS, workers: tuple[int, ...] = WORKERS) -> None:
    """Print one row per number of workers, then the cost of a metric."""
    rows = [["workers", "trials", "wall s", "s/trial beyond training (median)", "s/trial wall x workers"]]
    for count in workers:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(count, trials, Path(folder)))
    print(text_table(rows, wide=True))
    print(f"\n{len(os.sched_getaffinity(0))} CPU cores here; more workers than cores wait for each other.")
    with tempfile.TemporaryDirectory() as folder:
        print(f"one logged metric: {1000 * metric_seconds(Path(folder)):.3f} ms on sqlite, in batches")


def _row(workers: int, trials: int, root: Path) -> list[str]:
    decays = {f"wd{i}": {"optimizer.weight_decay": i / 1000} for i in range(trials)}
    file = StudySpec("bench", arms=decays, seeds=(0,), holds="steps", metrics=Metrics("val_loss"), figure=Figure())
    study = Study("bench", "smoke", "bench", file, decays, (0,), {})
    uri, queue_uri = f"sqlite:///{root / 'mlflow.db'}", f"sqlite:///{root / 'optuna.db'}"
    options = Options(root, uri, queue_uri, workers, True, "queue_overhead.py")
    begin = time.monotonic()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        launch_study(study, [*SETTINGS, *UNSCORED], options)
    wall = time.monotonic() - begin
    queue = open_queue(queue_uri, "bench/")
    assert queue is not None
    ends: dict[str, list[float]] = defaultdict(list)
    trained = []
    for trial in queue.latest().values():
        assert trial.datetime_complete is not None
        ends[trial.user_attrs[WORKER]].append(trial.datetime_complete.timestamp())
        trained.append(trial.user_attrs["final"]["cost/seconds"])
    gaps = [b - a for times in ends.values() for a, b in zip(sorted(times), sorted(times)[1:], strict=False)]
    beyond = statistics.median(gaps) - statistics.median(trained)
    return [str(workers), str(trials), f"{wall:.1f}", f"{beyond:.2f}", f"{wall * workers / trials:.2f}"]


def metric_seconds(root: Path) -> float:
    """Return seconds per metric through the recorder, in the recorder's own batches."""
    from sweeps.tracking.mlflow_logger import MlflowLogger, RunSpec

    uri = f"sqlite:///{root / 'mlflow.db'}"
    experiment = Store(uri, root).experiment("microdit/bench")
    recorder = MlflowLogger(uri, RunSpec(experiment, "bench", {}, {}, "queue_overhead.py"))
    recorder.open()
    begin = time.monotonic()
    for step in range(POINTS // 5):
        recorder.metrics(step + 1, {f"metric/{i}": float(step) for i in range(5)})
    recorder.flush()
    return (time.monotonic() - begin) / POINTS


if __name__ == "__main__":
    bench()
