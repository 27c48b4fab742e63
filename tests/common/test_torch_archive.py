"""Test that files of `torch.save` are parsed, not unpickled: the same tensors, and no code runs."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from microdit.common.errors import CheckpointError
from microdit.common.files.torch_archive import ForeignCode, read_torch_file
from microdit.encoders.efficientnet_lite0 import lite0_weights


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected.detach())
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_that_torch_reads_is_read(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    stored = {
        "state_dict": collections.OrderedDict(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()),
        "views": [whole, whole[1], whole.transpose(0, 2), whole[:, 1:, ::2]],
        "parameter": nn.Parameter(torch.ones(2)),
        "kinds": {str(kind): torch.tensor([0, 1, 1]).to(kind) for kind in kinds},
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "plain": [1, -5, 2**70, 1.5, None, True, False, "ä", (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}],
    }
    path = tmp_path / "a.pt"
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert same(found, torch.load(path, weights_only=True))
    shapes = read_torch_file(path, values=False)
    assert shapes["views"][2].shape == (4, 3, 2)
    assert shapes["views"][2].device.type == "meta"


def test_the_published_file_of_a_feature_network_is_read() -> None:
    path = Path(lite0_weights())
    assert same(read_torch_file(path), torch.load(path, map_location="cpu", weights_only=True))


class Planted:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


@pytest.mark.parametrize("zipped", [True, False])
def test_planted_code_is_rejected_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "executed"
    plants = [
        Planted(Path.touch, trace),
        Planted(os.system, f"touch {trace}"),
        Planted(eval, f"open({str(trace)!r}, 'w')"),
        Planted(subprocess.Popen, ["touch", str(trace)]),
        Planted(getattr, "a", "upper"),
        nn.Linear(2, 2),
        os.system,
        {1, 2},
        b"bytes",
    ]
    for number, plant in enumerate(plants):
        path = tmp_path / f"{number}.pt"
        torch.save({"weight": torch.ones(2), "more": plant}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ForeignCode, match=rf"{number}\.pt: has more than weights"):
            read_torch_file(path)
    path.write_bytes(pickle.dumps(plants[0]))
    with pytest.raises(CheckpointError, match=path.name):
        read_torch_file(path)
    assert not trace.exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("files") / "a.pt"
    contents = []
    for zipped in (True, False):
        torch.save({"a": torch.arange(40.0), "b": [torch.ones(3)]}, path, _use_new_zipfile_serialization=zipped)
        contents.append(path.read_bytes())
    return contents


@given(
    zipped=st.booleans(),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    end=st.floats(0, 2),
)
@settings(max_examples=100)
def test_damaged_files_are_read_or_raise_checkpoint_error(
    files: list[bytes],
    tmp_path_factory: pytest.TempPathFactory,
    zipped: bool,
    places: list[tuple[float, int]],
    end: float,
) -> None:
    content = bytearray(files[zipped])
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content[: int(end * len(content))])
    with contextlib.suppress(CheckpointError):
        read_torch_file(path)
