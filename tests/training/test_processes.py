"""Test a run on two processes, started by torchrun: the results equal those of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from changed_config import with_changes
from mlflow import MlflowClient
from safetensors.torch import load_file
from several import Curve

from microdit.config.schema import Config, load_config, save_config
from microdit.pipeline.train_and_evaluate import run

HERE = Path(__file__).parent
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*words: str) -> subprocess.Popen[str]:
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TWO, *words], env=surroundings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[str], seconds: float = 300) -> tuple[str, str]:
    try:
        out, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return out, said


def stored(base: Config, folder: Path, changes: Mapping[str, Any]) -> Path:
    """Return `base` with other values at dotted keys, as a config.yaml that writes to `folder`."""
    path = folder.with_suffix(".yaml")
    save_config(with_changes(base, {"output_dir": str(folder), "training.log_every": 1, **changes}), path)
    return path


def alone(path: Path) -> None:
    config = load_config(path)
    run(config, Curve(Path(config.output_dir)))


def curve(folder: Path, name: str = "train/loss") -> dict[int, float]:
    values = json.loads((folder / "curve.json").read_text())
    return {int(step): told[name] for step, told in values.items() if name in told}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Check that curves, averaged weights and scores agree, up to the order of floating-point sums."""
    for name in ("train/loss", "grad_norm", "val/loss"):
        expected, got = curve(theirs, name), curve(ours, name)
        assert got.keys() == expected.keys()
        np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-5)
    weights = load_file(theirs / "model.safetensors")
    for key, value in load_file(ours / "model.safetensors").items():
        np.testing.assert_allclose(value, weights[key], rtol=1e-3, atol=1e-5)


SCORED = {"evaluation.samples": 9, "evaluation.metrics": ["clip_fd", "clip_score"]}
TAIL = {"model.masking.method": "maskdit", "training.unmasked_tail": 0.5}  # its mask token has no gradient in the tail
KEEPING = {"training.keep_checkpoints": 9}


def begun_by(other: Path, folder: Path) -> None:
    """Copy the checkpoint of step 2 of 4 of `other` to `folder`, as if that run had been stopped there."""
    shutil.copytree(other / "checkpoints" / "step_00000002", folder / "checkpoints" / "step_00000002")


def test_two_processes_equal_one_and_resume_its_run(smoke_config: Config, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for side in (one, two):
        side.mkdir()
        for name, changes in (("deferred", KEEPING), ("tail", TAIL), ("resumed", KEEPING)):
            stored(smoke_config, side / name, changes)
    alone(one / "deferred.yaml")
    alone(one / "tail.yaml")
    begun_by(one / "deferred", two / "resumed")
    finished(
        torchrun(str(HERE / "several.py"), *(str(two / f"{name}.yaml") for name in ("deferred", "tail", "resumed")))
    )
    begun_by(two / "deferred", one / "resumed")
    alone(one / "resumed.yaml")

    assert_same_run(two / "deferred", one / "deferred")
    assert_same_run(two / "tail", one / "tail")
    for side in (one, two):
        losses = curve(side / "resumed")
        assert list(losses) == [3, 4]
        np.testing.assert_allclose([*losses.values()], [curve(one / "deferred")[step] for step in losses], rtol=1e-5)


REST: dict[str, dict[str, Any]] = {
    "accumulated": {"training.accumulation": 2, "training.unmasked_tail": 0.5},
    "unmasked sprint": {"model.masking.method": "sprint", "model.masking.ratio": 0.0},
    "muon, experts": {"optimizer.type": "muon", "model.experts.every_n": 2},
    "aligned": {"alignment.encoder": "efficientnet-lite0"},
    "scored": SCORED,
    "churned": {**SCORED, "sampler.churn.amount": 20.0},
    "unaveraged": {"training.ema.decay": 0.0, "model.masking.method": "naive"},
}


@pytest.mark.slow
def test_every_method_trains_equally_in_two_processes(smoke_config: Config, tmp_path: Path) -> None:
    paths = {side: [] for side in ("one", "two")}
    for side, found in paths.items():
        (tmp_path / side).mkdir()
        found += [stored(smoke_config, tmp_path / side / name, changes) for name, changes in REST.items()]
    finished(torchrun(str(HERE / "several.py"), *map(str, paths["two"])))
    for path in paths["one"]:
        alone(path)
    for name in REST:
        assert_same_run(tmp_path / "two" / name, tmp_path / "one" / name)
    for name in ("scored", "churned"):
        scores = [json.loads((tmp_path / side / name / "metrics.json").read_text()) for side in ("one", "two")]
        for metric in ("final/clip_fd", "final/clip_score", "final/samples", "final/reference_images"):
            assert scores[0][metric] == pytest.approx(scores[1][metric], rel=1e-3)


SHARDED: dict[str, dict[str, Any]] = {
    "deferred": {"training.keep_checkpoints": 9, "training.accumulation": 2},
    "maskdit tail": TAIL,
    "aligned, experts": {"alignment.encoder": "efficientnet-lite0", "model.experts.every_n": 2},
    "scored": SCORED,
}


@pytest.mark.slow
def test_weights_can_be_sharded(smoke_config: Config, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for side in (one, two):
        side.mkdir()
        for name, changes in {**SHARDED, "resumed": SHARDED["deferred"]}.items():
            parallel = "fsdp" if side == two else "ddp"
            stored(smoke_config, side / name, {**changes, "training.parallel": parallel})
    for name in SHARDED:
        alone(one / f"{name}.yaml")
    begun_by(one / "deferred", two / "resumed")
    finished(torchrun(str(HERE / "several.py"), *(str(two / f"{name}.yaml") for name in (*SHARDED, "resumed"))))
    begun_by(two / "deferred", one / "resumed")
    alone(one / "resumed.yaml")
    for name in SHARDED:
        assert_same_run(two / name, one / name)
    for side in (one, two):
        losses = curve(side / "resumed")
        assert list(losses) == [3, 4]
        np.testing.assert_allclose([*losses.values()], [curve(one / "deferred")[step] for step in losses], rtol=1e-5)


LONG = {"training.steps": 4000, "training.checkpoint_every": 0, "training.sample_every": 20}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_leaves_a_checkpoint(smoke_config: Config, tmp_path: Path, number: int) -> None:
    path = stored(smoke_config, tmp_path / "run", LONG)
    process = torchrun("-m", "microdit", "train", str(path))
    wait_for(tmp_path / "run" / "samples" / "step_00000020.png", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    (kept,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert 20 <= int(kept.name.removeprefix("step_")) < 4000
    assert said.count("microdit: interrupted; the same command resumes from the last checkpoint") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_process_stops_both(smoke_config: Config, tmp_path: Path, number: int) -> None:
    """After SIGTERM, both save the checkpoint. After SIGUSR1 kills one, torchrun ends the other at once."""
    path = stored(smoke_config, tmp_path / "run", LONG)
    process = torchrun("-m", "microdit", "train", str(path))
    wait_for(tmp_path / "run" / "samples" / "step_00000020.png", process)
    second = next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    second.send_signal(number)
    _, said = process.communicate(timeout=60)
    kept = list((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert len(kept) == said.count("microdit: interrupted") == (number == signal.SIGTERM)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} doesn't come"
        time.sleep(0.1)


FAILING = """
import os, torch
from microdit.common.errors import DataError
from microdit.training.optim.optimizers import adamw

def failing(net, config):
    optimizer = adamw(net, config)
    def fail(*_):
        if os.environ["RANK"] == os.environ["FAILING"]:
            raise {error}("the cable was pulled")
    optimizer.register_step_pre_hook(fail)
    return optimizer
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "error"), [("0", "DataError"), ("1", "DataError"), ("1", "ValueError")])
def test_an_error_in_one_process_ends_all_and_is_printed_once(
    smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, error: str
) -> None:
    (tmp_path / "broken.py").write_text(FAILING.format(error=error))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAILING", rank)
    path = stored(smoke_config, tmp_path / "run", {"plugins": ["broken"], "optimizer.type": "broken.failing"})
    process = torchrun("-m", "microdit", "train", str(path))
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    beginning = "microdit" if error == "DataError" else error
    assert said.count(f"{beginning}: the cable was pulled") == 1, said
    assert said.count("in _train_and_score") == (error != "DataError"), "one traceback at most"


@pytest.mark.slow
def test_an_error_in_all_processes_is_printed_once(smoke_config: Config, tmp_path: Path) -> None:
    path = stored(smoke_config, tmp_path / "run", {"training.batch_size": 9})
    process = torchrun("-m", "microdit", "train", str(path))
    _, said = process.communicate(timeout=60)
    assert said.count("microdit: 'training.batch_size' (9) must be a multiple of processes x accumulation (2 x 1)") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_processes_log_one_run(cache_dir: Path, tmp_path: Path) -> None:
    words = (
        "-m",
        "sweeps",
        "train",
        "scale=smoke",
        "evaluation.samples=0",
        f"root={tmp_path}",
        f"cache_dir={cache_dir}",
    )
    finished(torchrun(*words))
    out, _ = finished(torchrun(*words))
    assert out.count("finished before; reuse=false runs it again") == 1
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("microdit/train")
    assert experiment is not None
    (recorded,) = client.search_runs([experiment.experiment_id])
    assert [point.step for point in client.get_metric_history(recorded.info.run_id, "train/loss")] == [1, 2, 3, 4]
    process = torchrun("-m", "sweeps", "study=masking_ratio", "scale=smoke", f"root={tmp_path}")
    _, said = process.communicate(timeout=60)
    assert said.count("microdit-sweep: torchrun starts several processes of one run") == 1
