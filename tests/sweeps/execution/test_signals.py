"""Test stopping a single worker by SIGTERM, and by SIGUSR2, which SLURM sends before a time limit."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from launching import UNSCORED, opened, start, table
from optuna.trial import TrialState

from sweeps.execution.queue.trial_queue import WORKER

LONGER = UNSCORED.replace("steps=150", "steps=600").replace("checkpoint_every=10", "checkpoint_every=0")


def ask_one_to_leave(folder: Path, number: int) -> str:
    """Signal a worker during a trial, and return the trial's name once that process has ended."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if any(folder.glob("runs/mine/smoke/*/log.txt")):
            for attempt in opened(folder).tries(TrialState.RUNNING):
                if attempt.user_attrs.get("progress", {}).get("step", 0) > 0:
                    worker = psutil.Process(int(attempt.user_attrs[WORKER].split("/")[1]))
                    worker.send_signal(number)
                    worker.wait(timeout=30)
                    return str(attempt.user_attrs["name"])
        time.sleep(0.5)
    raise AssertionError("no trial has begun in ten minutes")


@pytest.mark.slow
def test_a_worker_that_is_asked_to_leave_keeps_a_checkpoint_and_the_sweep_resumes(
    tmp_path: Path, cache_dir: Path
) -> None:
    struck, calm = tmp_path / "struck", tmp_path / "calm"
    for folder in (struck, calm):
        folder.mkdir()
    launcher = start(struck, cache_dir, f"{LONGER} seeds=[0]")
    left = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        left.append(ask_one_to_leave(struck, number))
        folder = next(struck.glob(f"runs/mine/smoke/{left[-1].replace('/', '-')}-*"))
        kept = [int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*")]
        assert kept, "no checkpoint is due on the way, so the stop has kept it"
        assert 0 < kept[-1] < 600
        assert launcher.poll() is None
    assert launcher.wait(timeout=600) == 0, (struck / "output.txt").read_text()
    ended = opened(struck).tries(TrialState.FAIL)
    assert sorted(t.user_attrs["name"] for t in ended) == sorted(left)
    assert {t.user_attrs["error"] for t in ended} == {"interrupted"}

    assert start(calm, cache_dir, f"{LONGER} seeds=[0]").wait(timeout=600) == 0
    assert table(struck) == table(calm)
    assert len(table(calm)["a/seed0"]) > 600 / 5, "the whole curve is compared"
