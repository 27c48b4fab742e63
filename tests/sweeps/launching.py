"""A small study launched in processes of its own, and what it leaves in the store."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
from mlflow import MlflowClient

STUDY = """
question: Does anything get lost?
arms: {a: {optimizer.lr: 1.0e-3}, b: {optimizer.lr: 2.0e-3}}
baseline: a
seeds: [0, 1]
metrics: {primary: clip_fd}
"""
LONG = "training.steps=150 training.checkpoint_every=10 training.log_every=5 training.sample_every=0 data.train_size=64"
SCORED = f"{LONG} evaluation.samples=8"
UNSCORED = f"{LONG} evaluation.samples=0"


def start(
    folder: Path, cache: Path, settings: str = SCORED, workers: int = 2, said: str = "said.txt"
) -> subprocess.Popen[bytes]:
    """The command in `folder`; what it says is added to file `said` there."""
    (folder / "mine.yaml").write_text(STUDY)
    words = ["study=mine.yaml", "scale=smoke", f"workers={workers}", f"cache_dir={cache}", *settings.split()]
    surroundings = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")}
    with open(folder / said, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps", *words],
            cwd=folder,
            env=surroundings | {"OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def workers(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(launcher.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def table(folder: Path) -> dict[str, dict[str, float]]:
    """Final metrics of each trial; each has exactly one run, finished, with no step of a curve twice."""
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("microdit/mine")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`microdit.role` = 'trial'")
    assert [run.info.status for run in runs] == ["FINISHED"] * len(runs)
    found = {}
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
        assert len(steps) == len(set(steps))
        assert run.info.run_name not in found
        found[run.info.run_name] = {k: v for k, v in run.data.metrics.items() if k.startswith("final/")}
    return found
