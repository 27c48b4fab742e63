"""Test sweeps if a trial diverges, a worker is killed, or the user interrupts."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from launching import stored_runs
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from microdit.config.schema import load_config
from microdit.pipeline.train_and_evaluate import run as train

STUDY = """
question: What becomes of failures?
arms:
  good: {}
  diverges: {optimizer.lr: 1.0e+30}
seeds: [0]
"""
LONG = "training.steps=120 training.checkpoint_every=10 training.log_every=2 training.sample_every=0 data.train_size=64"


def runs() -> dict[str, Run]:
    found = stored_runs(query="")
    assert len({run.info.run_name for run in found}) == len(found), "a trial has one run, however often it was tried"
    return {run.info.run_name: run for run in found}


def test_a_diverging_trial_is_recorded_and_the_others_run(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(STUDY) == 1
    captured = capsys.readouterr()
    assert "done    good/seed0" in captured.err
    assert "FAILED diverges/seed0: " in captured.err
    assert "1 of 2 trials failed" in captured.err
    again = next(line for line in captured.err.splitlines() if "microdit train" in line).split()[-1]
    assert Path(again).is_file(), "the command that is printed must have its file"
    found = runs()
    failed = found["diverges/seed0"]
    assert (failed.info.status, found["good/seed0"].info.status) == ("FAILED", "FINISHED")
    assert found["mine at smoke"].info.status == "FAILED"
    tags = failed.data.tags
    assert "step" in tags["microdit.error"]
    assert "DivergenceError" in tags["microdit.traceback"]
    assert Path(tags["microdit.log"]).is_file()
    assert tags["microdit.rerun"].startswith("microdit train /")
    assert tags["microdit.attempt"] == "1"


def later(act: Callable[[], None], after: int = 0, attempt: str = "1") -> threading.Thread:
    """Act once there is a checkpoint of a step later than `after` and the trial's run has reached `attempt`."""

    def watch() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            late = any(int(path.parent.name.removeprefix("step_")) > after for path in checkpoints())
            if late and runs()["only/seed0"].data.tags["microdit.attempt"] == attempt:
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def checkpoints() -> list[Path]:
    return sorted(Path.cwd().glob("runs/mine/smoke/*/checkpoints/step_*/state.json"))


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def kill_workers() -> None:
    for worker in workers():
        worker.kill()


def test_killed_and_interrupted_sweeps_resume_to_the_same_weights(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = "{question: Same, arms: {only: {}}, seeds: [0]}"
    killed = later(kill_workers)  # another worker resumes it at once
    interrupted = later(lambda: os.kill(os.getpid(), signal.SIGTERM), after=60, attempt="2")
    assert launch(study, *LONG.split()) == 130
    killed.join()
    interrupted.join()
    printed = capsys.readouterr().err
    assert "again   only/seed0: its worker died" in printed
    assert "stopping: 1 workers save a checkpoint" in printed
    assert "the same command resumes" in printed
    assert {run.info.status for run in runs().values()} == {"KILLED"}
    assert not workers()

    assert launch(study, *LONG.split()) == 0
    run = runs()["only/seed0"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["microdit.attempt"] == "3"
    assert "microdit.error" not in run.data.tags
    client = MlflowClient(f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert len(steps) == len(set(steps)), "no step twice"
    assert steps[-1] == 120
    resumed = load_file(next(Path.cwd().glob("runs/mine/smoke/*/model.safetensors")))

    config = load_config(next(Path.cwd().glob("runs/mine/smoke/*/config.yaml")))
    undisturbed = dataclasses.replace(config, output_dir=str(tmp_path / "undisturbed"))
    train(undisturbed)
    whole = load_file(tmp_path / "undisturbed" / "model.safetensors")
    assert all(bool((resumed[name] == whole[name]).all()) for name in whole)
