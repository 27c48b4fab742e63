"""Test a full disk: one clear error, no partial files, and resuming once there is space."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import UNSCORED, start, table, wait_for_checkpoints
from safetensors.torch import load_file

SMALL = 64  # MiB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system at `tmp_path`/struck/runs; only root may."""
    folder = tmp_path / "struck" / "runs"
    folder.mkdir(parents=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(line, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the file system completely."""
    path = folder / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(descriptor, b"x" * size)
    os.close(descriptor)
    return path


@pytest.mark.slow
def test_a_full_disk_is_reported_in_a_sentence_and_loses_nothing(
    small_disk: Path, tmp_path: Path, cache_dir: Path
) -> None:
    struck, calm = tmp_path / "struck", tmp_path / "calm"
    calm.mkdir()
    settings = f"{UNSCORED} seeds=[0]"
    launcher = start(struck, cache_dir, settings)
    wait_for_checkpoints(struck, 1)
    filler = fill(small_disk)
    code = launcher.wait(timeout=600)
    output = (struck / "output.txt").read_text()
    print(output)
    assert code in (1, 2)
    assert "Traceback" not in output
    assert "disk is full" in output
    assert output.count("the same command") == 1
    assert not list(small_disk.glob("mine/smoke/*/checkpoints/.*")), "no half-written checkpoint"
    for path in small_disk.glob("mine/smoke/*/checkpoints/step_*/*.safetensors"):
        load_file(path)

    second = start(struck, cache_dir, settings, output="still_full.txt")
    assert second.wait(timeout=600) in (1, 2)
    assert "Traceback" not in (struck / "still_full.txt").read_text()

    filler.unlink()
    assert start(struck, cache_dir, settings, output="room.txt").wait(timeout=600) == 0, (
        struck / "room.txt"
    ).read_text()
    assert start(calm, cache_dir, settings).wait(timeout=600) == 0
    assert table(struck) == table(calm)
    assert len(table(calm)) == 2
