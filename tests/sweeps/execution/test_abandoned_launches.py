"""Test that a launch's MLflow run is ended: by the launch, or by the next command if it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from launching import stored_runs
from mlflow import MlflowClient

from microdit.common.process.identity import this_process
from sweeps.cli import main
from sweeps.execution import launch as launching
from sweeps.execution.launch_register import end_abandoned, entries
from sweeps.execution.launchers import LocalEngine
from sweeps.execution.queue.trial_queue import Queue
from sweeps.tracking.mlflow_store import Store

STUDY = "{question: Is it ended, arms: {only: {}}, seeds: [0]}"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def launch(launch: Callable[..., int], store: Store, tmp_path: Path) -> Callable[..., int]:
    """Launch the study in a folder with an empty store."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "mlflow.db").rename(tmp_path / "runs" / "mlflow.db")
    Path("mine.yaml").write_text(STUDY)
    return partial(launch, STUDY)


def states() -> list[str]:
    client = MlflowClient(f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


def signalling(number: int, original: Callable[..., object]) -> Callable[..., object]:
    """Send this process a signal, then call `original`."""

    def call(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("moment", ["_fill", "_work"])
def test_a_signal_at_any_moment_ends_the_run(
    launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    monkeypatch.setattr(launching, moment, signalling(number, getattr(launching, moment)))
    assert launch() == 130
    assert states() == ["KILLED"]


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_while_the_run_is_being_ended_does_not_keep_it_open(
    launch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalEngine, "run", signalling(signal.SIGINT, LocalEngine.run))
    monkeypatch.setattr(Store, "finish_launch", signalling(number, Store.finish_launch))
    assert launch() == 130
    assert states() == ["KILLED"]
    assert "still closing the launch's run" in capfd.readouterr().err


KILLED = """
import os, signal, sys
from sweeps.execution import launch
from sweeps.cli import main
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
launch._fill = die
main(sys.argv[1:])
"""


def kill_a_launch(cache_dir: Path) -> None:
    """Leave a launch's run open, like a killed launcher."""
    words = ["study=mine.yaml", "scale=smoke", "workers=1", "evaluation.samples=0", "seeds=[7]"]
    words.append(f"cache_dir={cache_dir}")
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert states() == ["RUNNING"]


def test_the_run_of_a_killed_launch_is_ended_by_status_and_by_another_launch(
    launch: Callable[..., int], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_a_launch(cache_dir)
    assert main(["status", "study=mine.yaml", "scale=smoke"]) == 0
    assert "ended in MLflow, because their launchers were killed: mine/smoke/" in capsys.readouterr().out
    assert states() == ["KILLED"]

    reopen_as_if_killed()
    monkeypatch.setattr(launching, "_work", lambda *_: None)
    assert launch() == 1, "of another plan, whose trials were not begun"
    assert sorted(states()) == ["FAILED", "KILLED"]


def reopen_as_if_killed() -> None:
    store, queue = (f"sqlite:///{Path('runs', name).resolve()}" for name in ("mlflow.db", "optuna.db"))
    client = MlflowClient(store)
    [run] = stored_runs(query="")
    client.update_run(run.info.run_id, status="RUNNING")
    gone = f"{this_process().rpartition('/')[0]}/1"
    entry = {"process": gone, "store": store, "beats": 1}
    Queue(queue, run.data.tags["microdit.queue"]).describe(**{"launcher:x": entry})


def test_a_launcher_of_another_machine_is_abandoned_only_after_a_silence(store: Store, tmp_path: Path) -> None:
    queue = Queue(f"sqlite:///{tmp_path / 'optuna.db'}", "mine/smoke/1")
    entry = {"process": "elsewhere+0/1/1", "store": store.uri, "beats": 1}
    queue.describe(**{"launcher:x": entry, "launcher:y": entry | {"process": "old/1/1"}})
    assert end_abandoned(queue.uri, store.uri, lambda: store) == []
    assert end_abandoned(queue.uri, store.uri, lambda: store, {"launcher:x"}) == []
    assert end_abandoned(queue.uri, "sqlite:////another.db", lambda: store, {"launcher:x", "launcher:y"}) == []
    assert end_abandoned(queue.uri, store.uri, lambda: store, {"launcher:x", "launcher:y"}) == ["mine/smoke/1"]
    assert entries(queue.uri) == {}
