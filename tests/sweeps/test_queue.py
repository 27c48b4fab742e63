"""The queue by itself: whatever happens to workers, each trial of the plan stays in it exactly once."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from optuna.trial import Trial, TrialState

from sweeps import queue as module
from sweeps.queue import HOPELESS_AT, WORKER, Queue
from sweeps.storage import BEAT, open_storage

GONE = f"{module.platform.node()}/1/0"  # process 1 of this machine began at another time


def plan(arms: int, seeds: int = 1) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    names = [f"arm{i}" for i in range(arms)]
    points = [(arm, seed) for seed in range(seeds) for arm in names]
    return {
        i: ({"arm": arm, "seed": seed}, {"name": f"{arm}/seed{seed}", "steps": 10, "key": str(i)})
        for i, (arm, seed) in enumerate(points)
    }


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with its tables, made once."""
    path = tmp_path_factory.mktemp("blank") / "optuna.db"
    open_storage(f"sqlite:///{path}").remove_session()
    return path


@pytest.fixture
def queue(blank: Path, tmp_path: Path) -> Queue:
    shutil.copy(blank, tmp_path / "optuna.db")
    made = Queue(f"sqlite:///{tmp_path / 'optuna.db'}", "plan")
    made.describe(choices={"arm": ["arm0", "arm1", "arm2"], "seed": [0, 1]})
    return made


def test_all_arms_come_at_the_first_seed_before_the_next(queue: Queue) -> None:
    queue.fill(plan(3, 2))
    names = []
    while (trial := queue.claim()) is not None:
        names.append(trial.user_attrs["name"])
        queue.complete(trial, [1.0])
    assert names == [f"arm{a}/seed{s}" for s in (0, 1) for a in (0, 1, 2)]


def test_a_released_trial_is_the_next_one_claimed(queue: Queue) -> None:
    queue.fill(plan(3))
    first = queue.claim()
    assert first is not None
    queue.release(first, "interrupted")
    again = queue.claim()
    assert again is not None
    assert again.user_attrs["name"] == "arm0/seed0"
    assert again.user_attrs["tries"] == 2


def test_a_dead_workers_trial_waits_again_until_it_is_hopeless(queue: Queue) -> None:
    queue.fill(plan(1))
    for death in range(HOPELESS_AT + 1):
        trial = queue.claim()
        assert trial is not None
        queue.note(trial._trial_id, **{WORKER: GONE})
        [(_, hopeless)] = queue.free_the_dead()
        assert hopeless == (death == HOPELESS_AT)
    assert queue.claim() is None
    assert queue.count().failed == 1
    queue.fill(plan(1))  # the same command, given again
    assert queue.count().waiting == 1


def test_progress_forgives_interruptions(queue: Queue) -> None:
    queue.fill(plan(1))
    for death in range(2 * HOPELESS_AT):
        trial = queue.claim()
        assert trial is not None
        queue.note(trial._trial_id, **{WORKER: GONE, "progress": {"step": death + 1}})
        [(_, hopeless)] = queue.free_the_dead()
        assert not hopeless


def test_a_trial_that_another_worker_took_is_lost_to_the_first(queue: Queue) -> None:
    queue.fill(plan(1))
    trial = queue.claim()
    assert trial is not None
    assert queue.beat(trial._trial_id)
    queue.note(trial._trial_id, **{WORKER: "elsewhere/1/0"})
    assert not queue.beat(trial._trial_id)


def silence(queue: Queue, minutes: int) -> None:
    """Makes the last heartbeats that much older."""
    with queue.storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-{minutes} minutes')")


def test_a_trial_of_another_machine_is_freed_after_a_minute_of_silence(queue: Queue) -> None:
    queue.fill(plan(1))
    trial = queue.claim()
    assert trial is not None
    queue.note(trial._trial_id, **{WORKER: "elsewhere/1/0"})
    for minutes, waiting in ((0, 0), (2, 1)):
        silence(queue, minutes)
        queue.free_the_dead()
        assert queue.count().waiting == waiting
    again = queue.claim()
    assert again is not None
    assert again.user_attrs["tries"] == 2
    assert not queue.beat(trial._trial_id), "the first worker, should it live after all, lets go"


def test_after_an_outage_living_workers_have_time_to_beat_again(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.fill(plan(1))
    trial = queue.claim()
    assert trial is not None
    queue.free_the_dead()
    silence(queue, minutes=2)  # the storage was away: nobody could beat, and the launcher could not look
    clock = [time.monotonic() + 120.0]
    monkeypatch.setattr("sweeps.queue.time.monotonic", lambda: clock[0])
    queue.free_the_dead()
    assert queue.count().running == 1
    assert queue.beat(trial._trial_id)
    for _ in range(2):
        clock[0] += 1.5 * BEAT
        queue.free_the_dead()
    assert queue.count().running == 1
    silence(queue, minutes=2)
    queue.free_the_dead()
    assert queue.count().waiting == 1


def test_finished_trials_need_not_run(queue: Queue) -> None:
    queue.fill(plan(2))
    queue.settle(1, {"arm": "arm1", "seed": 0}, [0.5], {"name": "arm1/seed0", "steps": 10, "key": "1"})
    queue.fill(plan(2))
    count = queue.count()
    assert (count.done, count.waiting) == (1, 1)
    trial = queue.claim()
    assert trial is not None
    assert trial.user_attrs["name"] == "arm0/seed0"


def _pull(uri: str, results: Any) -> None:
    queue = Queue(uri, "plan")
    while (trial := queue.claim()) is not None:
        results.put(trial.user_attrs["name"])
        queue.complete(trial, [0.0])


def test_four_processes_share_trials_without_taking_one_twice(queue: Queue) -> None:
    queue.fill(plan(40))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    crew = [context.Process(target=_pull, args=(queue.uri, results)) for _ in range(4)]
    for process in crew:
        process.start()
    # Without a lock before reading, sqlite lets some trials be claimed twice.
    taken = [results.get(timeout=120) for _ in range(40)]
    for process in crew:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sorted(taken) == sorted(f"arm{i}/seed0" for i in range(40))
    assert queue.count().done == 40


class Life(RuleBasedStateMachine):
    """Any order of claims, ends, failures, deaths and relaunches."""

    blank: Path
    folder: Path

    @initialize()
    def begin(self) -> None:
        path = self.folder / "optuna.db"
        shutil.copy(self.blank, path)
        self.queue = Queue(f"sqlite:///{path}", "plan")
        self.queue.fill(plan(3))
        self.held: list[Trial] = []
        self.done: set[int] = set()

    @rule()
    def claim(self) -> None:
        trial = self.queue.claim()
        if trial is not None:
            self.held.append(trial)

    @rule()
    def complete(self) -> None:
        if self.held:
            trial = self.held.pop()
            self.queue.complete(trial, [1.0])
            self.done.add(trial.user_attrs["order"])

    @rule()
    def fail_for_good(self) -> None:
        if self.held:
            self.queue.fail(self.held.pop(), "NaN", retry=False)

    @rule()
    def fail_and_retry(self) -> None:
        if self.held:
            self.queue.fail(self.held.pop(), "disk full", retry=True)

    @rule()
    def release(self) -> None:
        if self.held:
            self.queue.release(self.held.pop(), "interrupted")

    @rule()
    def die(self) -> None:
        if self.held:
            self.queue.note(self.held.pop()._trial_id, **{WORKER: GONE})
            self.queue.free_the_dead()

    @rule()
    def die_between_failing_and_queueing_again(self) -> None:
        if self.held:
            self.queue.storage.set_trial_state_values(self.held.pop()._trial_id, TrialState.FAIL)

    @rule()
    def launch_again(self) -> None:
        self.queue.fill(plan(3))
        assert self.queue.count().failed == 0

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        latest = self.queue.latest()
        assert sorted(latest) == [0, 1, 2]
        assert {order for order, t in latest.items() if t.state == TrialState.COMPLETE} == self.done
        live = [t.user_attrs["order"] for t in self.queue.tries(TrialState.WAITING, TrialState.RUNNING)]
        assert len(live) == len(set(live))


def test_no_order_of_events_loses_or_doubles_a_trial(blank: Path, tmp_path: Path) -> None:
    Life.blank, Life.folder = blank, tmp_path
    run_state_machine_as_test(
        Life,
        settings=settings(max_examples=15, stateful_step_count=15, suppress_health_check=list(HealthCheck)),
    )
