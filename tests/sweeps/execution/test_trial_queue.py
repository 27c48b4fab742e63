"""Test the queue alone: it contains each trial of the plan exactly once, whatever happens to workers."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from launching import claimed
from optuna.trial import Trial, TrialState

from microdit.common.process.identity import this_process
from sweeps.execution.queue.optuna_storage import HEARTBEAT_SECONDS, SILENCE_SECONDS, open_storage
from sweeps.execution.queue.trial_queue import DEAD, MAX_STALLED_INTERRUPTIONS, SILENT, WORKER, Queue

GONE = f"{this_process().rpartition('/')[0]}/1"  # this PID belonged to another process before


def plan(arms: int, seeds: int = 1) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    names = [f"arm{i}" for i in range(arms)]
    points = [(arm, seed) for seed in range(seeds) for arm in names]
    return {
        i: ({"arm": arm, "seed": seed}, {"name": f"{arm}/seed{seed}", "steps": 10, "key": str(i)})
        for i, (arm, seed) in enumerate(points)
    }


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage with its tables, created once."""
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
    first = claimed(queue)
    queue.release(first, "interrupted")
    again = claimed(queue)
    assert again.user_attrs["name"] == "arm0/seed0"
    assert again.user_attrs["tries"] == 2


def test_a_dead_workers_trial_waits_again_until_it_is_given_up(queue: Queue) -> None:
    queue.fill(plan(1))
    for death in range(MAX_STALLED_INTERRUPTIONS + 1):
        trial = claimed(queue)
        queue.note(trial._trial_id, **{WORKER: GONE})
        [(_, why, given_up)] = queue.requeue_dead()
        assert why == DEAD
        assert given_up == (death == MAX_STALLED_INTERRUPTIONS)
    assert queue.claim() is None
    assert queue.count().failed == 1
    queue.fill(plan(1))  # the same command, given again
    assert queue.count().waiting == 1


def test_interruptions_after_progress_do_not_count(queue: Queue) -> None:
    queue.fill(plan(1))
    for death in range(2 * MAX_STALLED_INTERRUPTIONS):
        trial = claimed(queue)
        queue.note(trial._trial_id, **{WORKER: GONE, "progress": {"step": death + 1}})
        [(_, _, given_up)] = queue.requeue_dead()
        assert not given_up


def test_a_trial_that_another_worker_claimed_is_lost_to_the_first(queue: Queue) -> None:
    queue.fill(plan(1))
    trial = claimed(queue)
    assert queue.send_heartbeat(trial._trial_id)
    queue.note(trial._trial_id, **{WORKER: "elsewhere/1/0"})
    assert not queue.send_heartbeat(trial._trial_id)


class Clock:
    """Simulate the observer's monotonic clock."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        patch.setattr("sweeps.execution.queue.liveness.time.monotonic", lambda: self.now)

    def look(self, queue: Queue, seconds: float, alive: int | None = None) -> list[str]:
        """Check the queue for dead workers at every heartbeat interval; return why trials were freed.

        Args:
            queue: the queue.
            seconds: how long to watch it.
            alive: id of a trial that gets a heartbeat before each check.
        """
        found = []
        for _ in range(round(seconds / HEARTBEAT_SECONDS)):
            self.now += HEARTBEAT_SECONDS
            if alive is not None:
                write_heartbeat(queue, alive)
            found += [why for _, why, _ in queue.requeue_dead()]
        return found


seconds = itertools.count(1)


def write_heartbeat(queue: Queue, trial_id: int, minutes_off: int = 0) -> None:
    """Write a new heartbeat value of a machine whose clock is off by that much."""
    shift = f"{60 * minutes_off + next(seconds)} seconds"
    change = "UPDATE trial_heartbeats SET heartbeat = datetime('now', ?) WHERE trial_id = ?"
    with sqlite3.connect(queue.uri.removeprefix("sqlite:///")) as other:
        other.execute(change, (shift, trial_id))


def claimed_elsewhere(queue: Queue, worker: str) -> int:
    queue.fill(plan(1))
    trial = claimed(queue)
    queue.note(trial._trial_id, **{WORKER: worker})
    return trial._trial_id


OLD = f"{platform.node()}/1/0"  # the form of earlier versions: a host name does not identify processes


@pytest.mark.parametrize("worker", ["elsewhere/1/0", OLD, "", "nonsense", "a/b/c/d"])
def test_a_worker_of_unknown_fate_is_freed_after_a_minute_of_silence(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, worker: str
) -> None:
    clock = Clock(monkeypatch)
    first = claimed_elsewhere(queue, worker)
    assert clock.look(queue, SILENCE_SECONDS - HEARTBEAT_SECONDS) == []
    assert queue.count().running == 1
    assert clock.look(queue, 3 * HEARTBEAT_SECONDS) == [SILENT]
    again = claimed(queue)
    assert again.user_attrs["tries"] == 2
    assert not queue.send_heartbeat(first), "the first worker, if it is alive, must give up the trial"


@pytest.mark.parametrize("minutes", [-600, -1, 0, 1, 600])
def test_a_clock_that_is_off_frees_no_living_worker(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """The clock of worker, observer or database server is wrong; only changes of the heartbeat count."""
    clock = Clock(monkeypatch)
    trial = claimed_elsewhere(queue, "elsewhere/1/0")
    write_heartbeat(queue, trial, minutes)
    assert clock.look(queue, SILENCE_SECONDS - HEARTBEAT_SECONDS) == []
    write_heartbeat(queue, trial, -minutes)  # set again while it works
    assert clock.look(queue, SILENCE_SECONDS - HEARTBEAT_SECONDS) == []
    assert clock.look(queue, 5 * SILENCE_SECONDS, alive=trial) == []
    assert queue.count().running == 1
    assert clock.look(queue, 2 * SILENCE_SECONDS) == [SILENT], "a future heartbeat keeps no dead worker alive"


def test_a_step_of_the_wall_clock_frees_no_living_worker_of_this_machine(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start times that are read as wall-clock times move with the clock."""
    queue.fill(plan(1))
    assert queue.claim() is not None
    real, now = psutil.Process.create_time, time.time()
    for step in (30.0, -3600.0):
        monkeypatch.setattr(psutil.Process, "create_time", lambda process, step=step: real(process) + step)
        monkeypatch.setattr("time.time", lambda step=step: now + step)
        assert queue.requeue_dead() == []
    assert queue.count().running == 1


def test_after_an_outage_living_workers_have_time_for_a_heartbeat(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    trial = claimed_elsewhere(queue, "elsewhere/1/0")
    assert clock.look(queue, SILENCE_SECONDS - HEARTBEAT_SECONDS) == []
    # The storage was unreachable: no worker could send heartbeats, and the launcher could not look.
    clock.now += 2 * SILENCE_SECONDS
    assert clock.look(queue, SILENCE_SECONDS) == []
    write_heartbeat(queue, trial)
    assert clock.look(queue, SILENCE_SECONDS) == []
    assert clock.look(queue, 2 * HEARTBEAT_SECONDS) == [SILENT]


HOLD = """
import sys, time
from sweeps.execution.queue.trial_queue import Queue
queue = Queue(sys.argv[1], "plan")
trial = queue.claim()
print("claimed", flush=True)
for line in sys.stdin:
    print(queue.send_heartbeat(trial._trial_id), len(queue.requeue_dead()), flush=True)
"""


@contextlib.contextmanager
def holder(queue: Queue, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that has claimed a trial; per line of input it sends a heartbeat and checks the queue."""
    command = [*before, sys.executable, "-c", HOLD, queue.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_killed_worker_of_this_machine_is_found_at_once_and_never_a_living_one(queue: Queue) -> None:
    queue.fill(plan(1))
    with holder(queue) as worker:
        assert queue.requeue_dead() == []
        assert ask(worker) == "True 0"
        worker.kill()
        worker.wait()
        assert [why for _, why, _ in queue.requeue_dead()] == [DEAD]
    assert queue.count().waiting == 1


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
HALF_A_CONTAINER = ("unshare", "--pid", "--fork", "--kill-child")  # its /proc shows the processes of the outer one


def can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*CONTAINER, "true"], check=False).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no PID namespaces without privileges here")
@pytest.mark.parametrize("container", [CONTAINER, HALF_A_CONTAINER])
def test_containers_with_the_same_host_name_leave_each_others_workers_alone(
    queue: Queue, container: tuple[str, ...]
) -> None:
    queue.fill(plan(3))
    with holder(queue, *container) as one, holder(queue, *container) as two:
        own = claimed(queue)
        for _ in range(2):
            assert queue.requeue_dead() == []
            assert [ask(one), ask(two)] == ["True 0", "True 0"]
        assert queue.send_heartbeat(own._trial_id)
    assert queue.count().running == 3


def test_a_half_finished_retry_is_completed_by_the_next_worker(queue: Queue) -> None:
    """Earlier versions failed a trial and queued it again in two steps."""
    queue.fill(plan(1))
    trial = claimed(queue)
    queue.note(trial._trial_id, error="disk full", given_up=False)
    queue.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    again = claimed(Queue(queue.uri, "plan"))
    assert (again.user_attrs["failures"], again.user_attrs["tries"]) == (1, 2)
    queue.fail(again, "disk full", retry=False)
    assert queue.claim() is None, "given up"
    assert queue.requeue_dead() == []
    assert queue.count().failed == 1


def test_finished_trials_are_not_run(queue: Queue) -> None:
    queue.fill(plan(2))
    queue.add_finished(1, {"arm": "arm1", "seed": 0}, [0.5], {"name": "arm1/seed0", "steps": 10, "key": "1"})
    queue.fill(plan(2))
    count = queue.count()
    assert (count.done, count.waiting) == (1, 1)
    trial = claimed(queue)
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
    processes = [context.Process(target=_pull, args=(queue.uri, results)) for _ in range(4)]
    for process in processes:
        process.start()
    # Without a lock before reading, sqlite lets some trials be claimed twice.
    taken = [results.get(timeout=120) for _ in range(40)]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sorted(taken) == sorted(f"arm{i}/seed0" for i in range(40))
    assert queue.count().done == 40


class Life(RuleBasedStateMachine):
    """Try any order of claims, ends, failures, deaths and relaunches."""

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
            self.queue.requeue_dead()

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
