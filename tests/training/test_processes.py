"""A run shared by two processes, started by torchrun as a user starts it: the same run as in one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from several import Curve

from microdit.config import Config, config_from_mapping, save_config
from microdit.config_io import assign, to_mapping
from microdit.run import run

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
    """`base` with other values at dotted keys, as a config.yaml that writes to `folder`."""
    values = to_mapping(base)
    for key, value in ({"output_dir": str(folder), "training.log_every": 1} | dict(changes)).items():
        assign(values, key, value)
    path = folder.with_suffix(".yaml")
    save_config(config_from_mapping(values), path)
    return path


def alone(path: Path) -> None:
    from microdit.config import load_config

    config = load_config(path)
    run(config, Curve(Path(config.output_dir)))


def curve(folder: Path, name: str = "train/loss") -> dict[int, float]:
    values = json.loads((folder / "curve.json").read_text())
    return {int(step): told[name] for step, told in values.items() if name in told}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Curves, averaged weights and scores agree, but for the order in which floats are added."""
    for name in ("train/loss", "grad_norm", "val/loss"):
        expected, got = curve(theirs, name), curve(ours, name)
        assert got.keys() == expected.keys()
        np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-5)
    weights = load_file(theirs / "model.safetensors")
    for key, value in load_file(ours / "model.safetensors").items():
        np.testing.assert_allclose(value, weights[key], rtol=1e-3, atol=1e-5)


ARMS: dict[str, dict[str, Any]] = {
    "deferred": {"evaluation.samples": 9, "evaluation.metrics": ["clip_fd", "clip_score"]},
    "accumulated": {"training.accumulation": 2, "training.unmasked_tail": 0.5},
    "maskdit_tail": {"model.masking.method": "maskdit", "training.unmasked_tail": 0.5},
    "unmasked_sprint": {"model.masking.method": "sprint", "model.masking.ratio": 0.0},
    "muon": {"optimizer.type": "muon"},
}


def test_two_processes_train_as_one(smoke_config: Config, tmp_path: Path) -> None:
    names = ("deferred", "maskdit_tail")
    for side in ("one", "two"):
        (tmp_path / side).mkdir()
    paths = {side: [stored(smoke_config, tmp_path / side / n, ARMS[n]) for n in names] for side in ("one", "two")}
    both = torchrun(str(HERE / "several.py"), *map(str, paths["two"]))
    for path in paths["one"]:
        alone(path)
    finished(both)
    for name in names:
        assert_same_run(tmp_path / "two" / name, tmp_path / "one" / name)
