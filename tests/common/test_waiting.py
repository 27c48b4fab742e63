"""Test that a waiting program reports for what and for how long."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

import pytest

from microdit.common.process.waiting import AGAIN_SECONDS, FIRST_SECONDS, Reporter

LONG = 60.0  # seconds until a test gives up


@pytest.fixture
def said() -> queue.Queue[str]:
    return queue.Queue()


def test_the_first_line_comes_within_two_seconds_and_then_one_every_ten() -> None:
    assert FIRST_SECONDS <= 2
    assert AGAIN_SECONDS == 10


def test_a_wait_is_reported_repeatedly_with_its_current_text(said: queue.Queue[str]) -> None:
    with Reporter(said.put, first=0.01, again=0.01).waiting("the store") as wait:
        assert said.get(timeout=LONG) == "waiting for the store (0 s)"
        wait.what = "the store (database is locked)"
        while said.get(timeout=LONG) != "waiting for the store (database is locked) (0 s)":
            pass


def test_a_wait_that_ends_early_is_not_reported(said: queue.Queue[str]) -> None:
    reporter = Reporter(said.put, first=3600)
    for _ in range(1000):
        with reporter.waiting("nothing"):
            pass
    assert said.empty()


def test_the_innermost_wait_of_each_thread_is_reported(said: queue.Queue[str]) -> None:
    reporter = Reporter(said.put, first=0.05, again=3600)
    inside, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with reporter.waiting("a lock"):
            inside.set()
            leave.wait(LONG)

    thread = threading.Thread(target=elsewhere)
    with reporter.waiting("workers"), reporter.waiting("the store"):
        thread.start()
        inside.wait(LONG)
        lines = {said.get(timeout=LONG).rpartition(" (")[0] for _ in range(2)}
    leave.set()
    thread.join()
    assert lines == {"waiting for the store", "waiting for a lock"}


def test_a_short_wait_is_reported_during_a_long_one(said: queue.Queue[str]) -> None:
    """The thread sleeps for the older wait's next line, which must not delay the newer wait's first."""
    reporter = Reporter(said.put, first=0.01, again=3600)
    begun = threading.Event()

    def elsewhere() -> None:
        with reporter.waiting("workers"):
            begun.wait(LONG)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert "workers" in said.get(timeout=LONG)
    with reporter.waiting("the store"):
        assert "the store" in said.get(timeout=LONG)
    begun.set()
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_reports_on_stderr_and_so_does_its_forked_child() -> None:
    code = (
        "import os, time, microdit.common.process.waiting as w\n"
        "def wait(what):\n"
        "    with w.waiting(what): time.sleep(w.FIRST_SECONDS + 0.5)\n"
        "wait('a parent')\n"
        "if os.fork() == 0: wait('a child'); os._exit(0)\n"
        "os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG)
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("waiting for a parent (")
    assert second.startswith("waiting for a child (")
