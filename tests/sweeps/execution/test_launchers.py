"""Test the command with every engine: failures, retries, reuse and multirun."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import STUDY, stored_runs
from mlflow.entities import Run

from microdit.config.identity import trial_key
from microdit.config.schema import load_config
from microdit.pipeline.train_and_evaluate import run as train
from sweeps.cli import main

FLAKY = '''
from pathlib import Path
from microdit.model.masking.base import DeferredMasking

class Flaky(DeferredMasking):
    """Fail once."""
    def plan(self, draws):
        marker = Path(__file__).with_name("broke")
        if not marker.exists():
            marker.touch()
            raise OSError("No space left on device")
        return super().plan(draws)
'''
UNSCORED = ["evaluation.samples=0", "training.sample_every=0", "data.train_size=64"]


@pytest.fixture
def sweep(tmp_path: Path, cache_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in its own process, as third-party launchers require."""

    def run(study: str, *words: str) -> subprocess.CompletedProcess[str]:
        Path("mine.yaml").write_text(study)
        line = [sys.executable, "-m", "sweeps", "study=mine.yaml", "scale=smoke", f"cache_dir={cache_dir}"]
        line += [*UNSCORED, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


def runs(study: str = "mine", root: str = "runs") -> dict[str, Run]:
    found = stored_runs(root, study)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def losses(root: str) -> dict[str, float]:
    return {name: run.data.metrics["final/val_loss"] for name, run in runs(root=root).items()}


def test_launchers_give_the_same_table(sweep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    found = {}
    for launcher in ("local", "joblib", "submitit_local"):
        if launcher != "local":
            pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
        done = sweep(STUDY, f"launcher={launcher}", f"root={launcher}", "workers=2")
        assert done.returncode == 0, done.stderr
        found[launcher] = losses(launcher)
    assert len(found["local"]) == 4
    assert found["joblib"] == found["submitit_local"] == found["local"]


@pytest.mark.slow
def test_ray_gives_the_same_table(sweep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    for launcher in ("local", "ray"):
        done = sweep(STUDY, f"launcher={launcher}", f"root={launcher}", "workers=2")
        assert done.returncode == 0, done.stderr
    assert losses("ray") == losses("local")


def test_a_temporary_failure_is_retried(sweep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    Path("flaky.py").write_text(FLAKY)
    study = "{question: x, arms: {a: {model.masking.method: flaky.Flaky}}, seeds: [0], metrics: {primary: val_loss}}"
    done = sweep(study, "plugins=[flaky]", "workers=1")
    assert done.returncode == 0, done.stderr
    assert runs()["a/seed0"].data.tags["microdit.attempt"] == "2"
    Path("broke").unlink()
    done = sweep(study, "plugins=[flaky]", "workers=1", "max_retries=0", "root=other")
    assert done.returncode == 1
    assert "FAILED a/seed0: OSError: No space left on device" in done.stderr
    assert "microdit train " in done.stderr


def test_fail_fast_stops_and_reports_what_was_not_begun(sweep: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    study = "{question: x, arms: {bad: {optimizer.lr: 1.0e+30}, good: {}}, seeds: [0, 1], metrics: {primary: val_loss}}"
    done = sweep(study, "workers=1", "fail_fast=true")
    assert done.returncode == 1
    assert "trials were not begun (fail_fast: " in done.stderr
    assert sorted(name for name, run in runs().items() if run.info.status == "FAILED") == ["bad/seed0"]


def test_a_trial_of_another_study_is_reused_as_planned(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(STUDY)
    Path("other.yaml").write_text(STUDY.replace("b: {optimizer.lr: 2.0e-3}", "c: {optimizer.lr: 3.0e-3}"))
    words = ["scale=smoke", "seeds=[0]", "workers=1", f"cache_dir={cache_dir}", *UNSCORED]
    assert main(["study=mine.yaml", *words]) == 0
    capsys.readouterr()
    assert main(["plan", "study=[mine.yaml,other.yaml]", "measure=false", *(w for w in words if w != "workers=1")]) == 0
    printed = capsys.readouterr().out
    assert "1 reused from other studies" in printed
    assert "4 trials in 2 studies, 3 of them distinct: sharing saves 1 runs" in printed
    assert main(["study=other.yaml", *words]) == 0
    assert "1 finished before, 1 to run" in capsys.readouterr().err
    assert runs("other")["a/seed0"].data.tags["microdit.reused_from"] == runs()["a/seed0"].info.run_id


def test_multirun_is_a_study_that_can_be_reported(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from analysis.cli import main as report

    words = ["optimizer.weight_decay=0.01,0.1", "seed=0,1", "scale=smoke", "workers=2", f"cache_dir={cache_dir}"]
    assert main(["train", "-m", *words, *UNSCORED]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("report "))
    name = line.split()[2]
    assert sorted(runs(name)) == [f"weight_decay={w}/seed{s}" for w in (0.01, 0.1) for s in (0, 1)]
    assert report([name, "scale=smoke"]) == 0
    assert "weight_decay=0.1" in capsys.readouterr().out


def test_a_stored_config_runs_again_to_the_same_result(launch: Callable[..., int], tmp_path: Path) -> None:
    import dataclasses

    assert launch(STUDY, "seeds=[0]", *UNSCORED) == 0
    config = load_config(next(Path.cwd().glob("runs/mine/smoke/a-seed0-*/config.yaml")))
    again = train(dataclasses.replace(config, output_dir=str(tmp_path / "again")))
    first = runs()["a/seed0"]
    assert first.data.tags["microdit.trial_key"] == trial_key(config)
    assert again["final/val_loss"] == first.data.metrics["final/val_loss"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("launcher=jobli", ["launcher=jobli", "'joblib'"]),
        ("workers_per_gpu=0", ["workers_per_gpu=0", "at least 1"]),
        ("max_retries=-1", ["max_retries=-1", "at least 0"]),
        ("fail_fast=maybe", ["fail_fast=maybe", "true or false"]),
        ("hydra.launcher.partition=gpu", ["hydra.launcher.partition", "no options"]),
        ("queue_uri=nosuch://x", ["queue_uri=nosuch://x", "can't be opened"]),
        ("study=[mine.yaml,other.yaml]", ["one by one"]),
    ],
)
def test_mistakes_are_one_line(
    line: str, words: list[str], cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(STUDY)
    study = [] if line.startswith("study") else ["study=mine.yaml"]
    assert main([*study, "scale=smoke", f"cache_dir={cache_dir}", *UNSCORED, line]) == 2
    captured = capsys.readouterr().err
    for word in words:
        assert word in captured
    assert captured.splitlines()[-1].startswith("microdit-sweep: ")


def test_workers_divide_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.execution.launch_spec import LaunchSpec
    from sweeps.execution.worker import choose_gpu

    spec = LaunchSpec("", "", "", "", "", "", "", "", "", ("val_loss",))
    given = []
    for worker in range(4):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
        choose_gpu(spec, worker)
        given.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert given == ["2", "5", "2", "5"], "four workers on two GPUs: two each"


@pytest.mark.slow
def test_an_mlflow_server_may_be_away_for_a_while(
    sweep: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The HTTP server is killed in the middle of the sweep and restarted 30 seconds later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    line += ["--artifacts-destination", str(tmp_path / "artifacts")]

    def serve() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2):
                return server
            time.sleep(0.5)
        raise AssertionError("the server did not start")

    server = serve()
    away = []

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(tmp_path.glob("runs/mine/smoke/*/checkpoints/step_*")):
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
        time.sleep(30)
        away.append(serve())

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        done = sweep(STUDY, f"tracking_uri={uri}", "workers=2", "training.steps=200", "training.checkpoint_every=20")
        thread.join()
        assert done.returncode == 0, done.stderr
        assert [run.info.status for run in stored_runs(uri=uri)] == ["FINISHED"] * 4
    finally:
        thread.join()
        for process in away:
            os.killpg(process.pid, signal.SIGKILL)
