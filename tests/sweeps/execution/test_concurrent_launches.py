"""Test several launches and machines on one study: one worker runs each trial."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from launching import UNSCORED, opened, start, table, wait_for_checkpoints, workers
from optuna.trial import TrialState

from sweeps.execution.queue.optuna_storage import HEARTBEAT_SECONDS, SILENCE_SECONDS
from sweeps.execution.queue.trial_queue import WORKER


def result_lines(text: str) -> list[str]:
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("arm "))
    return lines[begin : begin + 4]


@pytest.mark.slow
def test_the_same_command_twice_at_once_runs_each_trial_once(tmp_path: Path) -> None:
    """Nothing exists yet: both launches race to create the cache, both databases, the experiment and the queue."""
    names = ("one", "two")
    launches = [start(tmp_path, tmp_path / "cache", UNSCORED, workers=1, output=f"{name}.txt") for name in names]
    codes = [launch.wait(timeout=600) for launch in launches]
    output = [(tmp_path / f"{name}.txt").read_text() for name in names]
    assert codes == [0, 0], "\n".join(output)
    tries = opened(tmp_path).tries()
    assert sorted(t.user_attrs["name"] for t in tries) == ["a/seed0", "a/seed1", "b/seed0", "b/seed1"]
    assert {t.state.name for t in tries} == {"COMPLETE"}
    found = table(tmp_path)
    assert len({t.user_attrs[WORKER] for t in tries}) == 2, "workers of both have worked"
    assert {t.user_attrs["name"]: t.user_attrs["final"]["final/val_loss"] for t in tries} == {
        name: metrics["final/val_loss"] for name, metrics in found.items()
    }
    assert result_lines(output[0]) == result_lines(output[1])
    assert [line.split()[-1] for line in result_lines(output[0])[2:]] == ["2", "2"], "two seeds of each arm"


@pytest.mark.slow
def test_trials_of_a_machine_that_vanished_are_finished_elsewhere(tmp_path: Path, cache_dir: Path) -> None:
    """Processes are killed and recorded as another host's, so only silence shows that they died."""
    struck, calm = tmp_path / "struck", tmp_path / "calm"
    for folder in (struck, calm):
        folder.mkdir()
    settings = f"{UNSCORED} seeds=[0]"
    vanishing = start(struck, cache_dir, settings)
    wait_for_checkpoints(struck, 2)
    for process in [vanishing, *workers(vanishing)]:
        process.kill()
    vanishing.wait()
    silent = time.monotonic()
    queue = opened(struck)
    held = queue.tries(TrialState.RUNNING)
    assert len(held) == 2
    for attempt in held:
        queue.note(attempt._trial_id, **{WORKER: f"elsewhere/{attempt.user_attrs[WORKER].partition('/')[2]}"})

    assert start(struck, cache_dir, settings, output="again.txt").wait(timeout=600) == 0
    output = (struck / "again.txt").read_text()
    assert "0 to run, 2 in other workers" in output
    assert time.monotonic() - silent > SILENCE_SECONDS - HEARTBEAT_SECONDS, "only after the silence"
    assert [t.user_attrs["tries"] for t in opened(struck).latest().values()] == [2, 2]

    assert start(calm, cache_dir, settings).wait(timeout=600) == 0
    assert table(struck) == table(calm)
    assert len(table(calm)) == 2
