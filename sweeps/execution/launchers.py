"""Start the workers: on this machine, or with one of Hydra's launchers (joblib, submitit/SLURM, Ray).

An engine starts `sweeps.execution.worker.work` a number of times and returns when all workers have ended. Workers claim
their trials from the queue. Presets are in experiments/launcher/; `launcher=NAME` chooses one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from microdit.common.errors import ConfigError, nearest
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import masked
from sweeps.config.override_quoting import quoted
from sweeps.tracking.retry import StoreError

STOP_SECONDS = 30.0  # time for a stopped trial to save a checkpoint and close its run
LOCAL = "local"
EXIT_STORE_UNREACHABLE = 3  # exit code of a worker that could not reach its queue
POLL_SECONDS = 2.0  # seconds between two looks at the queue; an ending worker wakes the launcher at once
EXTRA = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
Tick = Callable[[], bool]  # called regularly; False: stop


class Engine(Protocol):
    """Starts `count` workers of a queue and waits for them."""

    share_gpus: bool

    def run(self, queue_uri: str, queue_name: str, count: int, tick: Tick) -> None:
        """Return when all workers have ended, or were stopped because `tick` returned False."""


def launcher_names() -> list[str]:
    """Return the names of the bundled presets."""
    return [LOCAL, *group_options("launcher")]


def build_engine(name: str, root: Path, options: list[str]) -> Engine:
    """Return an engine; `options` are Hydra overrides of its preset, such as `hydra.launcher.partition=gpu`."""
    if name == LOCAL:
        if options:
            raise ConfigError(f"'{options[0]}': the local launcher has no options")
        return LocalEngine()
    if name not in launcher_names():
        raise ConfigError(f"launcher={name}: {nearest(name, launcher_names())}")
    return HydraEngine(name, root, options)


@dataclass
class _WorkerProcess:
    """A worker process and its index, which determines its GPU."""

    index: int
    process: SpawnProcess
    begun: float


class LocalEngine:
    """Worker processes on this machine; one that dies is replaced as long as trials wait."""

    share_gpus = True

    def run(self, queue_uri: str, queue_name: str, count: int, tick: Tick) -> None:
        def hire(index: int) -> _WorkerProcess:
            return _WorkerProcess(index, _start(queue_uri, queue_name, index), time.monotonic())

        crew: list[_WorkerProcess] = []
        shortlived = 0
        try:
            crew.extend(hire(index) for index in range(count))
            while crew and tick():
                multiprocessing.connection.wait([hand.process.sentinel for hand in crew], timeout=POLL_SECONDS)
                for hand in [hand for hand in crew if not hand.process.is_alive()]:
                    crew.remove(hand)
                    if hand.process.exitcode == 0:
                        continue
                    shortlived = shortlived + 1 if time.monotonic() - hand.begun < 5 else 0
                    if shortlived < 2 * count:  # otherwise workers fail at the start
                        tick()
                        crew.append(hire(hand.index))
        finally:
            _end()


def _start(queue_uri: str, queue_name: str, index: int) -> SpawnProcess:
    context = multiprocessing.get_context("spawn")  # PyTorch's threads may hang after a fork
    process = context.Process(target=_live, args=(queue_uri, queue_name, index), name=f"worker {index}")
    # Ctrl-C and the end of a terminal reach all of its processes. Workers have these signals blocked: the launcher ends
    # them. The resource tracker comes first, because its start would unblock them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _live(queue_uri: str, queue_name: str, index: int) -> None:
    from sweeps.execution.worker import work

    # os._exit below would leak the semaphore of tqdm's default lock, which Python reports when the launcher ends.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    try:
        code = work(queue_uri, queue_name, index)
    except StoreError:  # the launcher gets it too, and reports it once
        code = EXIT_STORE_UNREACHABLE
    except Exception:
        print(masked(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # the normal exit collects all of PyTorch's objects, which takes up to 20 s


def _end_with_the_launcher() -> None:
    """Stop this worker when its launcher has died, since nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _end() -> None:
    """Let all workers save a checkpoint and return their trials; kill slow ones, and all after a second signal.

    A signal may arrive between a worker's start and its registration, so this looks at all child processes.
    """
    crew = multiprocessing.active_children()
    if not crew:
        return
    for process in crew:
        process.terminate()
    print(
        f"stopping: {len(crew)} workers save a checkpoint and return their trials, within {STOP_SECONDS:.0f} s; "
        "Ctrl-C again ends them at once",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + STOP_SECONDS
    try:
        with waiting("") as wait:
            while crew and time.monotonic() < until:
                wait.what = f"{len(crew)} workers to save a checkpoint and stop"
                multiprocessing.connection.wait([process.sentinel for process in crew], timeout=1.0)
                crew = [process for process in crew if process.is_alive()]
    finally:
        for process in crew:
            process.kill()
        for process in crew:
            process.join()


class HydraEngine:
    """Workers as jobs of a Hydra launcher: job i of a multirun is worker i."""

    def __init__(self, name: str, root: Path, options: list[str]) -> None:
        self._name, self._root = name, root
        self._config, self._context = self._compose(options)
        self.share_gpus = bool(self._config.share_gpus)

    def run(self, queue_uri: str, queue_name: str, count: int, tick: Tick) -> None:
        shown = masked(queue_uri)  # a job's overrides are written to files
        Plugins.instance()
        HydraConfig.instance().set_config(self._config)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=run_worker_job, config=self._config
        )
        jobs = [
            [f"queue.uri={quoted(shown)}", f"queue.name={quoted(queue_name)}", f"queue.worker={i}"]
            for i in range(count)
        ]
        ended = threading.Event()
        show = threading.Thread(target=_ticking, args=(tick, ended), daemon=True)
        show.start()
        try:
            results = launcher.launch(jobs, initial_job_idx=0)
        except KeyboardInterrupt:
            print(f"stopping: launcher={self._name} ends its jobs", file=sys.stderr, flush=True)
            raise
        finally:
            ended.set()
            show.join(timeout=10)
        for result in results:
            if result.status == JobStatus.FAILED:
                raise ConfigError(f"launcher={self._name}: a worker failed: {result._return_value!r}")

    def _compose(self, options: list[str]) -> tuple[DictConfig, HydraContext]:
        """Return Hydra's composition of the `worker` job for this launcher, including its `hydra` node."""
        words = [
            f"launcher={self._name}",
            f"hydra.sweep.dir={quoted(str((self._root / 'launches').resolve()))}",
            *options,
        ]
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(EXPERIMENTS), job_name="microdit", version_base="1.3"):
                loader = GlobalHydra.instance().config_loader()
                context = HydraContext(config_loader=loader, callbacks=_callbacks())
                config = loader.load_configuration("worker", words, RunMode.MULTIRUN)
        except HydraException as error:
            extra = EXTRA[self._name]
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"launcher={self._name}: {reason} (is it installed? pip install 'microdit[{extra}]')"
            ) from None
        with open_dict(config):
            config.hydra.runtime.output_dir = str(self._root)
        return config, context


def _callbacks() -> Any:
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def _ticking(tick: Tick, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        tick()


def run_worker_job(config: DictConfig) -> int:
    """Run one worker as a Hydra job."""
    from sweeps.execution.worker import work

    try:
        return work(str(config.queue.uri), str(config.queue.name), int(config.queue.worker))
    except StoreError as error:  # other workers may still reach it
        print(f"microdit-sweep: worker {config.queue.worker} stops: {masked(str(error))}", file=sys.stderr)
        return EXIT_STORE_UNREACHABLE
