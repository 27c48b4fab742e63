"""Workers, launcher or all at once are killed at random moments; the table is that of an undisturbed sweep."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

STUDY = """
question: Does anything get lost?
arms: {a: {optimizer.lr: 1.0e-3}, b: {optimizer.lr: 2.0e-3}}
baseline: a
seeds: [0, 1]
metrics: {primary: clip_fd}
"""
SETTINGS = (
    "training.steps=150 training.checkpoint_every=10 training.log_every=5 training.sample_every=0 "
    "data.train_size=64 evaluation.samples=8"
)


def start(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    (folder / "mine.yaml").write_text(STUDY)
    words = ["study=mine.yaml", "scale=smoke", "workers=2", f"cache_dir={cache}", *SETTINGS.split()]
    surroundings = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")}
    with open(folder / "said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps", *words],
            cwd=folder,
            env=surroundings | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def workers(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(launcher.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def strike(launcher: subprocess.Popen[bytes], draw: random.Random) -> str:
    """One of: kill -9 of a worker, of the launcher, of all; SIGTERM of the launcher."""
    kind = draw.choice(("worker", "worker", "launcher", "all", "polite"))
    crew = workers(launcher)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if kind == "worker" and crew:
            draw.choice(crew).kill()
        elif kind == "polite":
            launcher.send_signal(signal.SIGTERM)
        elif kind in ("launcher", "all"):
            launcher.kill()
            for worker in crew if kind == "all" else []:
                worker.kill()
    return kind


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


def survive(folder: Path, cache: Path, kills: int, seed: int) -> list[str]:
    """Launches again and again until all is done; `kills` strikes fall while trials run. Returns what struck."""
    draw = random.Random(seed)
    struck: list[str] = []
    deadline = time.monotonic() + 120 + 60 * kills
    while time.monotonic() < deadline:
        launcher = start(folder, cache)
        while launcher.poll() is None and len(struck) < kills:
            if not workers(launcher):
                time.sleep(0.1)
                continue
            time.sleep(draw.uniform(2.0, 9.0))  # a worker takes some seconds to import torch
            if launcher.poll() is None:
                struck.append(strike(launcher, draw))
        code = launcher.wait(timeout=240)
        if code == 0:
            return struck
    raise AssertionError((folder / "said.txt").read_text()[-3000:])


def compare(tmp_path: Path, cache: Path, kills: int, seed: int) -> None:
    for name in ("struck", "calm"):
        (tmp_path / name).mkdir()
    struck = survive(tmp_path / "struck", cache, kills, seed)
    survive(tmp_path / "calm", cache, 0, seed)
    print(f"survived {len(struck)} kills: {', '.join(struck)}")
    assert table(tmp_path / "struck") == table(tmp_path / "calm")
    assert len(table(tmp_path / "calm")) == 4


def test_kills_change_nothing(tmp_path: Path, cache_dir: Path) -> None:
    compare(tmp_path, cache_dir, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_kills_change_nothing(tmp_path: Path, cache_dir: Path, seed: int) -> None:
    compare(tmp_path, cache_dir, kills=15, seed=seed)
