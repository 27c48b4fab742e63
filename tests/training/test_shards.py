"""Test checkpoints of sharded runs: their files, their rows, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_processes import HERE, alone, assert_same_run, begun_by, curve, finished, stored, torchrun

from microdit.common.errors import CheckpointError
from microdit.config.schema import Config
from microdit.training.checkpoint import read_checkpoint
from microdit.training.run_files import shard_name
from microdit.training.stored_tensors import TensorFiles, row_splits, sharded_parts

SHARDED = {"training.parallel": "fsdp", "training.keep_checkpoints": 9}


@pytest.mark.parametrize("processes", range(1, 6))
@pytest.mark.parametrize("rows", range(1, 12))
def test_rows_are_split_as_torch_does(rows: int, processes: int) -> None:
    chunks = torch.arange(rows).chunk(processes)
    splits = row_splits(rows, processes)
    sizes = [len(chunk) for chunk in chunks] + [0] * (processes - len(chunks))
    assert np.diff(splits).tolist() == sizes


def test_rows_are_read_from_the_files_that_have_them(tmp_path: Path) -> None:
    whole = torch.arange(15.0).view(5, 3)
    for process, part in enumerate(whole.chunk(3)):
        save_file(
            {"ema/a": part.clone()} | ({"ema/b": torch.tensor(7.0)} if process == 0 else {}),
            tmp_path / shard_name(process, 3),
        )
    listing = {"a": {"shape": [5, 3], "split": True}, "b": {"shape": [], "split": False}}
    (tmp_path / "index.json").write_text(json.dumps({"processes": 3, "parts": {"ema": listing}}))
    found = sharded_parts(TensorFiles(tmp_path), ("ema",))["ema"]
    assert float(found["b"].read()) == 7
    assert torch.equal(found["a"].read(), whole)
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(found["a"].read(slice(start, stop)), whole[start:stop])
    (tmp_path / shard_name(1, 3)).unlink()
    assert torch.equal(sharded_parts(TensorFiles(tmp_path), ("ema",))["ema"]["a"].read(slice(0, 2)), whole[:2])
    with pytest.raises(CheckpointError, match=r"shard_00001_of_00003\.safetensors"):
        sharded_parts(TensorFiles(tmp_path), ("ema",))["ema"]["a"].read()


def test_a_sharded_run_resumes_in_one_process_and_back(smoke_config: Config, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    half = {"training.precision": "bf16"}
    runs = {"whole": SHARDED, "resumed": SHARDED, "half": SHARDED | half, "unsharded half": half}
    for side in (one, two):
        side.mkdir()
        for name, changes in runs.items():
            stored(smoke_config, side / name, changes)
    alone(one / "whole.yaml")
    begun_by(one / "whole", two / "resumed")
    finished(torchrun(str(HERE / "several.py"), *(str(two / f"{name}.yaml") for name in runs)))
    begun_by(two / "whole", one / "resumed")
    assert_same_run(two / "whole", one / "whole")
    assert_same_run(two / "half", two / "unsharded half")
    folder = two / "whole" / "checkpoints" / "step_00000002"
    assert {path.name for path in folder.iterdir()} == {
        *(shard_name(process, 2) for process in range(2)), "index.json", "optimizer.json", "state.json",
    }  # fmt: skip
    sizes = [sum(t.nbytes for t in load_file(folder / shard_name(process, 2)).values()) for process in range(2)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    alone(one / "resumed.yaml")
    for run in (one / "resumed", two / "resumed"):
        for name in ("train/loss", "grad_norm"):
            expected, got = curve(one / "whole", name), curve(run, name)
            assert list(got) == [3, 4]
            np.testing.assert_allclose([*got.values()], [expected[step] for step in got], rtol=1e-5)

    damaged = shutil.copytree(folder, tmp_path / "damaged" / folder.name)
    path = damaged / shard_name(1, 2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"shard_00001_of_00002\.safetensors: wrong checksum"):
        read_checkpoint(damaged)


KILLING = """
import os, signal
import microdit.training.checkpoint as checkpoint

place, rank, step = os.environ["KILLED_AT"], os.environ["KILLED_RANK"], 4
before = getattr(checkpoint, place)

def kill(*arguments):
    if os.environ.get("RANK") == rank and any(f"step_{step:08d}" in str(a) or (
            isinstance(a, dict) and a.get("step") == step) for a in arguments):
        if place == "write_tensors":
            arguments[0].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*arguments)

setattr(checkpoint, place, kill)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "rank"),
    [("write_tensors", "0"), ("write_tensors", "1"), ("file_digest", "1"), ("signed", "0")],
)
def test_a_kill_while_writing_leaves_the_former_checkpoint(
    smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, rank: str
) -> None:
    (tmp_path / "killing.py").write_text(KILLING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KILLED_AT", place)
    monkeypatch.setenv("KILLED_RANK", rank)
    changes = {"training.parallel": "fsdp", "training.checkpoint_every": 2, "training.steps": 6}
    straight = stored(smoke_config, tmp_path / "straight", changes)
    path = stored(smoke_config, tmp_path / "run", changes | {"plugins": ["killing"]})
    alone(straight)
    process = torchrun("-m", "microdit", "train", str(path))
    process.communicate(timeout=120)
    assert process.returncode != 0
    kept = [found.name for found in (tmp_path / "run" / "checkpoints").glob("step_*")]
    assert kept in (["step_00000002"], ["step_00000004"])
    monkeypatch.setenv("KILLED_RANK", "nobody")
    finished(torchrun("-m", "microdit", "train", str(path)))
    assert [found.name for found in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000006"]
    expected = load_file(tmp_path / "straight" / "model.safetensors")
    for name, value in load_file(tmp_path / "run" / "model.safetensors").items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5)
