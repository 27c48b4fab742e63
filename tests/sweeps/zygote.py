"""Import everything once, and fork a launch with a planned kill per request.

Requests and answers are JSON lines: `{"launch": [folder, words, strike]}` gives a PID, `{"poll": pid}` its exit code or
null. A strike names a process (the launcher, or its workers) and a moment: a wall-clock delay, the n-th file operation
on a path, or the n-th SQL statement, either of all or from the entry of a function on. It strikes once per launch.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FILES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "sqlite3.connect"}  # of Python's audit events
STRIKE, STRUCK = "strike.json", "struck"
PRELOAD = ["warm"]


def die() -> None:
    try:
        os.close(os.open(STRUCK, os.O_CREAT | os.O_EXCL))  # several workers share a strike
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(number: int) -> Callable[[], None]:
    left = [number]

    def call() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    return call


def arm(strike: dict[str, Any]) -> None:
    """Plan the kill of this process."""
    if "after" in strike:
        signal.signal(signal.SIGALRM, lambda *_: die())
        signal.setitimer(signal.ITIMER_REAL, strike["after"])
    if "path" in strike:
        tick, words = countdown(strike["count"]), re.compile(strike["path"])
        sys.addaudithook(lambda event, args: tick() if event in FILES and words.search(str(args[0])) else None)
    if "fail" in strike:
        fail_once()
    if "sql" in strike:
        if "within" in strike:
            module, _, name = strike["within"].rpartition(":")
            on_entry(module, name, lambda: on_statement(strike["sql"], strike["count"]))
        else:
            on_statement(strike["sql"], strike["count"])


def on_statement(words: str, count: int) -> None:
    import sqlalchemy

    tick = countdown(count)

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
    def execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if re.search(words, statement):
            tick()

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "commit")
    def commit(_connection: Any) -> None:
        if re.search(words, "COMMIT"):
            tick()


def on_entry(module: str, name: str, act: Callable[[], None]) -> None:
    """Call `act` at the first call of `module`'s function `name`, or method `Class.name`."""
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, name, original)
        act()
        return original(*args, **kwargs)

    setattr(owner, name, call)


def fail_once() -> None:
    """Let the first trial of this process fail before its training begins; it may be retried."""

    def fail() -> None:
        raise OSError("an injected failure")

    on_entry("microdit.pipeline.train_and_evaluate", "run", fail)


def work(*args: Any) -> None:
    """Run a worker, with the launch's kill if it is meant for workers."""
    from sweeps.execution import launchers

    strike = json.loads(Path(STRIKE).read_text())
    if strike.get("who") == "worker" and not Path(STRUCK).exists():
        arm(strike)
    launchers._run_worker(*args)


def start_worker(queue_uri: str, queue_name: str, index: int) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=work, args=(queue_uri, queue_name, index))
    process.start()
    return process


def launch(folder: str, words: list[str], strike: dict[str, Any]) -> int:
    """Fork a launch of `words` in `folder`; return its PID."""
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        with open("output.txt", "a") as output:
            for number in (1, 2):
                os.dup2(output.fileno(), number)
        Path(STRUCK).unlink(missing_ok=True)
        Path(STRIKE).write_text(json.dumps(strike))
        from sweeps.cli import main
        from sweeps.execution import launchers

        multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # its parent is the zygote
        launchers._start = start_worker  # type: ignore[assignment]
        if strike.get("who") == "launcher":
            arm(strike)
        code = main(words)
    finally:
        sys.stdout.flush()
        os._exit(code)


def poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def serve() -> None:
    multiprocessing.set_forkserver_preload(PRELOAD)
    multiprocessing.forkserver.ensure_running()
    for name in PRELOAD:
        importlib.import_module(name)
    sys.modules["zygote"] = sys.modules["__main__"]
    work.__module__ = "zygote"
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = launch(*request["launch"]) if "launch" in request else poll(request["poll"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
