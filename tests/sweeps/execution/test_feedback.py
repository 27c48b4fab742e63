"""Test that a command reports at once that it has begun, and that it is stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from microdit.training.graceful_stop import handle_stop_signals

WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "optuna", "mlflow"):
            raise SystemExit(f"imports {name}")
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize(
    ("main", "words"),
    [
        ("sweeps.cli", ["study=masking_ratio"]),
        ("sweeps.cli", ["train", "scale=smoke"]),
        ("sweeps.cli", ["train", "-m", "seed=0,1"]),
        ("microdit.cli.main", ["train", "config.yaml"]),
        ("microdit.cli.main", ["finetune", "run", "--data", "images", "--out", "new"]),
    ],
)
def test_the_first_line_comes_before_the_slow_imports(main: str, words: list[str]) -> None:
    code = f"{WITHOUT_TORCH}from {main} import main\nmain({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    first, second = done.stderr.splitlines()
    assert first.startswith("loading PyTorch")
    assert second.startswith("imports ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_stop_says_so_at_once_and_stops_after_its_step(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with handle_stop_signals() as stop:
        with stop.watched():
            os.kill(os.getpid(), number)
            assert stop.requested
            assert "stopping after this step, with a checkpoint" in capfd.readouterr().err
        with stop.closing():
            os.kill(os.getpid(), number)  # must not leave the run open in its store
    assert signal.getsignal(number) is before


def test_signals_that_were_ignored_stay_ignored() -> None:
    """SIGHUP is ignored, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_stop_signals() as stop, stop.watched():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
