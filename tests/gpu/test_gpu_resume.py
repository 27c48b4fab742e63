"""Test that a process killed by SIGKILL in mid-training resumes to the weights of a run that was not killed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_config import with_changes
from safetensors.torch import load_file

from microdit.config.schema import Config, save_config

STEPS = 200
EVERY = 20  # steps between checkpoints
SECONDS = 120  # at most, per process
GPU_ERROR = 1e-4  # relative; a few of a GPU's kernels add in a changing order
# Kernels that add in a fixed order, as far as there are any.
TRAIN = """
import sys, torch, warnings
warnings.simplefilter("ignore")
torch.use_deterministic_algorithms(True, warn_only=True)
from microdit.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


def start(config: Config, folder: Path) -> subprocess.Popen[bytes]:
    """Start a training process; its output goes to log.txt."""
    folder.mkdir(exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    save_config(dataclasses.replace(config, output_dir=str(folder)), path)
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", TRAIN, str(path)], stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen[bytes], folder: Path) -> dict[str, torch.Tensor]:
    try:
        code = process.wait(SECONDS)
    finally:
        process.kill()
    assert code == 0, (folder.parent / f"{folder.name}.log").read_text(errors="replace")[-3000:]
    return load_file(folder / "model.safetensors")


def kill_after_a_checkpoint(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Kill the process once it has written a checkpoint; return the step that it resumes from."""
    deadline = time.monotonic() + SECONDS
    while not list(folder.glob("checkpoints/step_*")):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline, "it wrote no checkpoint"
        time.sleep(0.01)
    process.kill()
    process.wait()
    return max(int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*"))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
def test_a_killed_run_resumes_to_the_same_weights(
    smoke_config: Config, device: torch.device, tmp_path: Path, figure: Callable[..., None]
):
    changes = {
        "training.device": device.type,
        "training.steps": STEPS,
        "training.checkpoint_every": EVERY,
        "training.sample_every": 0,
    }
    config = with_changes(smoke_config, changes)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = finish(start(config, whole), whole)
    resumed_from = kill_after_a_checkpoint(start(config, broken), broken)
    figure("resumed from step", resumed_from, at_most=STEPS - 1)
    got = finish(start(config, broken), broken)
    assert got.keys() == expected.keys()
    one, other = (torch.cat([tensor.double().flatten() for tensor in run.values()]) for run in (expected, got))
    figure("bit-equal", bool(torch.equal(one, other)))
    figure("relative error", float((one - other).norm() / one.norm()), at_most=0 if device.type == "cpu" else GPU_ERROR)
