"""Test an outage of the queue's storage: no worker counts as dead because of it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from launching import UNSCORED, opened, start, table, wait_for_checkpoints

from sweeps.execution.queue.optuna_storage import SILENCE_SECONDS


@pytest.mark.slow
def test_a_queue_that_is_locked_for_over_a_minute_costs_no_trial(tmp_path: Path, cache_dir: Path) -> None:
    launcher = start(tmp_path, cache_dir, f"{UNSCORED} seeds=[0]")
    wait_for_checkpoints(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / "runs" / "optuna.db", timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(SILENCE_SECONDS + 10)
        other.execute("ROLLBACK")
    code, output = launcher.wait(timeout=600), (tmp_path / "output.txt").read_text()
    assert code == 0, output
    assert "Traceback" not in output
    tries = opened(tmp_path).tries()
    assert [(t.state.name, t.user_attrs.get("tries", 1)) for t in tries] == [("COMPLETE", 1)] * 2
    assert len(table(tmp_path)) == 2
