"""Test kills of launchers and workers at random and chosen moments; results equal an undisturbed sweep's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import STUDY, table
from mlflow import MlflowClient

from microdit.common.files.atomic import ABANDONED_SECONDS, SCRATCH

SETTINGS = (
    "training.steps=20 training.checkpoint_every=4 training.log_every=2 training.sample_every=0 data.train_size=64 "
    "training.batch_size=8 evaluation.samples=0"
)
HERE = Path(__file__).resolve().parents[1]
DDL = "CREATE TABLE|ALTER TABLE|alembic_version|INSERT INTO"
ANY = ""
WINDOWS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "launcher, any time": lambda draw: {"who": "launcher", "after": draw.uniform(0.05, 8)},
    "worker, any time": lambda draw: {"who": "worker", "after": draw.uniform(0.05, 4)},
    "tracking store": lambda draw: {"who": "launcher", "path": r"mlflow\.db", "count": draw.randint(1, 12)},
    "queue's store": lambda draw: {"who": "launcher", "path": r"optuna\.db", "count": draw.randint(1, 12)},
    "migration": lambda draw: {"who": "launcher", "sql": DDL, "count": draw.randint(1, 200)},
    "cache": lambda draw: {"who": "launcher", "path": "/cache/", "count": draw.randint(1, 60)},
    "checkpoint": lambda draw: {"who": "worker", "path": "checkpoints", "count": draw.randint(1, 150)},
    "claim": lambda draw: _sql("worker", "sweeps.execution.queue.transactions:claim", draw.randint(1, 10)),
    "failure": lambda draw: (
        {"fail": True} | _sql("worker", "sweeps.execution.queue.transactions:fail", draw.randint(1, 25))
    ),
    "filling": lambda draw: _sql("launcher", "sweeps.execution.launch:_fill", draw.randint(1, 60)),
    "end": lambda draw: _sql("launcher", "sweeps.execution.launch_register:Presence.leave", draw.randint(1, 30)),
}
FRESH = ("tracking store", "queue's store", "migration", "cache")  # windows of a first launch only


def _sql(who: str, within: str, count: int) -> dict[str, Any]:
    return {"who": who, "within": within, "sql": ANY, "count": count}


class Zygote:
    """Control the process that forks launches; see `zygote.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, request: Any = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if request is not None:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def launch(self, folder: Path, cache: Path, strike: dict[str, Any]) -> int:
        """Run the study in `folder` to the launcher's end and return its exit code; negative for a signal."""
        (folder / "mine.yaml").write_text(STUDY)
        words = ["study=mine.yaml", "scale=smoke", "seeds=[0]", "workers=2", f"cache_dir={cache}", *SETTINGS.split()]
        pid = self.ask({"launch": [str(folder), words, strike]})
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            code = self.ask({"poll": pid})
            if code is not None:
                return int(code)
            time.sleep(0.05)
        raise AssertionError((folder / "output.txt").read_text()[-3000:])


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    hidden = ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])  # the fork server imports `warm` from there
    command = [sys.executable, str(HERE / "zygote.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            made = Zygote(process)
            assert made.ask() == "ready"
            yield made
        finally:
            process.kill()


def finish(zygote: Zygote, folder: Path, cache: Path) -> None:
    """Give the same command until it succeeds, as a user does."""
    for _ in range(3):
        if zygote.launch(folder, cache, {}) == 0:
            return
    raise AssertionError((folder / "output.txt").read_text()[-3000:])


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("runs/mine/smoke/*/model.safetensors"))
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_sound(folder: Path, calm: Path) -> None:
    output = (folder / "output.txt").read_text()
    assert "Traceback" not in output, output[-5000:]
    assert table(folder) == table(calm)
    assert weights(folder) == weights(calm)
    assert len(weights(folder)) == 2
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}


def assert_swept(zygote: Zygote, folder: Path, cache: Path) -> None:
    """Check that at most scratch folders without a lock remain: their writers were killed before they took the lock."""
    left = [path for path in folder.rglob(".*") if SCRATCH.fullmatch(path.name)]
    assert not [path for path in left if any(path.iterdir())], "scratch folders of killed processes"
    for path in left:
        os.utime(path, (time.time() - ABANDONED_SECONDS,) * 2)
    if left:
        finish(zygote, folder, cache)
    assert not any(path.exists() for path in left)


def _begin(tmp_path: Path, number: int, calm: Path, window: str) -> Path:
    """Make a folder for the next sweep; the cache is filled already unless it is to be struck."""
    folder = tmp_path / f"struck{number}"
    folder.mkdir()
    if window != "cache":
        shutil.copytree(calm / "cache", folder / "cache")
    return folder


def strike_all(zygote: Zygote, tmp_path: Path, plan: list[str], seed: int) -> Counter[str]:
    """Strike once per launch, in the order of `plan`; return how many strikes hit per window."""
    draw = random.Random(seed)
    hits: Counter[str] = Counter()
    calm = tmp_path / "calm"
    calm.mkdir()
    finish(zygote, calm, tmp_path / "calm" / "cache")
    folder, number = _begin(tmp_path, 0, calm, plan[0]), 0
    for window in plan:
        finished = (folder / "runs").is_dir() and len(weights(folder)) == 2
        if finished or (window in FRESH and (folder / "runs" / "optuna.db").exists()):
            finish(zygote, folder, folder / "cache")
            assert_sound(folder, calm)
            assert_swept(zygote, folder, folder / "cache")
            number += 1
            folder = _begin(tmp_path, number, calm, window)
        zygote.launch(folder, folder / "cache", WINDOWS[window](draw))
        hits[window] += (folder / "struck").exists()
        (tmp_path / "hits.json").write_text(json.dumps(hits))
    finish(zygote, folder, folder / "cache")
    assert_sound(folder, calm)
    assert_swept(zygote, folder, folder / "cache")
    return hits


def test_kills_change_nothing(zygote: Zygote, tmp_path: Path) -> None:
    hits = strike_all(zygote, tmp_path, ["checkpoint", "claim", "end"], seed=1)
    assert sum(hits.values()) >= 2


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(zygote: Zygote, tmp_path: Path) -> None:
    """`MICRODIT_KILLS` sets another number of launches."""
    draw = random.Random(2)
    plan = [draw.choice(list(WINDOWS)) for _ in range(int(os.environ.get("MICRODIT_KILLS", "300")))]
    hits = strike_all(zygote, tmp_path, plan, seed=3)
    print(f"{sum(hits.values())} kills in {len(plan)} launches: {dict(hits)}")
    assert set(hits) == set(WINDOWS)
