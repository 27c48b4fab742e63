"""Several launches and machines on one study: each trial is one worker's, whoever started it and wherever it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import UNSCORED, start, table

from sweeps.queue import WORKER, Queue, open_queue


def opened(folder: Path) -> Queue:
    queue = open_queue(f"sqlite:///{folder / 'runs' / 'optuna.db'}", "mine/smoke/")
    assert queue is not None
    return queue


def result_lines(text: str) -> list[str]:
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("arm "))
    return lines[begin : begin + 4]


@pytest.mark.slow
def test_the_same_command_twice_at_once_runs_each_trial_once(tmp_path: Path) -> None:
    """Nothing is there before: the two also race for the cache, both databases, the experiment and the queue."""
    names = ("one", "two")
    launches = [start(tmp_path, tmp_path / "cache", UNSCORED, workers=1, said=f"{name}.txt") for name in names]
    codes = [launch.wait(timeout=300) for launch in launches]
    said = [(tmp_path / f"{name}.txt").read_text() for name in names]
    assert codes == [0, 0], "\n".join(said)
    tries = opened(tmp_path).tries()
    assert sorted(t.user_attrs["name"] for t in tries) == ["a/seed0", "a/seed1", "b/seed0", "b/seed1"]
    assert {t.state.name for t in tries} == {"COMPLETE"}
    found = table(tmp_path)
    assert len({t.user_attrs[WORKER] for t in tries}) == 2, "workers of both have worked"
    assert {t.user_attrs["name"]: t.user_attrs["final"]["final/val_loss"] for t in tries} == {
        name: metrics["final/val_loss"] for name, metrics in found.items()
    }
    assert result_lines(said[0]) == result_lines(said[1])
    assert [line.split()[-1] for line in result_lines(said[0])[2:]] == ["2", "2"], "two seeds of each arm"
