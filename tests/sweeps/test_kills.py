"""Workers, launcher or all at once are killed at random moments; the table is that of an undisturbed sweep."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from launching import start, table, workers


def strike(launcher: subprocess.Popen[bytes], draw: random.Random) -> str:
    """One of: kill -9 of a worker, of the launcher, of all; SIGTERM of the launcher."""
    kind = draw.choice(("worker", "worker", "launcher", "all", "polite"))
    crew = workers(launcher)
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if kind == "worker" and crew:
            draw.choice(crew).kill()
        elif kind == "polite":
            launcher.send_signal(signal.SIGTERM)
        elif kind in ("launcher", "all"):
            launcher.kill()
            for worker in crew if kind == "all" else []:
                worker.kill()
    return kind


def survive(folder: Path, cache: Path, kills: int, seed: int) -> list[str]:
    """Launches again and again until all is done; `kills` strikes fall while trials run. Returns what struck."""
    draw = random.Random(seed)
    struck: list[str] = []
    deadline = time.monotonic() + 600 + 60 * kills
    while time.monotonic() < deadline:
        launcher = start(folder, cache)
        while launcher.poll() is None and len(struck) < kills:
            if not workers(launcher):
                time.sleep(0.1)
                continue
            time.sleep(draw.uniform(2.0, 9.0))  # a worker takes some seconds to import torch
            if launcher.poll() is None:
                struck.append(strike(launcher, draw))
        code = launcher.wait(timeout=600)
        if code == 0:
            return struck
    raise AssertionError((folder / "said.txt").read_text()[-3000:])


def compare(tmp_path: Path, cache: Path, kills: int, seed: int) -> None:
    for name in ("struck", "calm"):
        (tmp_path / name).mkdir()
    struck = survive(tmp_path / "struck", cache, kills, seed)
    survive(tmp_path / "calm", cache, 0, seed)
    print(f"survived {len(struck)} kills: {', '.join(struck)}")
    assert table(tmp_path / "struck") == table(tmp_path / "calm")
    assert len(table(tmp_path / "calm")) == 4


def test_kills_change_nothing(tmp_path: Path, cache_dir: Path) -> None:
    compare(tmp_path, cache_dir, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_kills_change_nothing(tmp_path: Path, cache_dir: Path, seed: int) -> None:
    compare(tmp_path, cache_dir, kills=15, seed=seed)
