"""Test files of tensors: equal content gives equal bytes, and any change is detected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microdit.common.errors import CheckpointError
from microdit.common.files.tensors import read_facts, read_tensors, write_tensors

FACTS = {"layer": "last", "text": "builtin", "note": "ä"}
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(0.5, dtype=torch.float64)}


def test_tensors_and_facts_round_trip(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS, FACTS)
    found = read_tensors(tmp_path / "t.safetensors", signed=True)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert read_facts(tmp_path / "t.safetensors") == FACTS


def test_equal_content_gives_equal_files_in_every_process(tmp_path: Path) -> None:
    """Weights are identified by their file's digest, so its bytes must not depend on the process."""
    script = (
        "import sys; from pathlib import Path; import torch; from microdit.common.files.tensors import write_tensors; "
        "write_tensors(Path(sys.argv[1]), {'a': torch.zeros(3), 'b': torch.ones(2)}, dict(zip('xyzw', 'abcd')))"
    )
    for number in range(3):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / str(number))], check=True, env=dict(os.environ))
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1


def test_a_changed_fact_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, TENSORS, FACTS)
    path.write_bytes(path.read_bytes().replace(b"last", b"lost"))
    with pytest.raises(CheckpointError, match=r"t\.safetensors: wrong checksum"):
        read_tensors(path)
    path.write_bytes(path.read_bytes().replace(b'\\"lost\\"', b"\\\"lost['"))
    for read in (read_tensors, read_facts):
        with pytest.raises(CheckpointError, match=r"t\.safetensors: can't be read as weights"):
            read(path)
