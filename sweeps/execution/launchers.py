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
from sweeps.execution.worker import work
from sweeps.tracking.retry import StoreError

STOP_SECONDS = 30.0  # for a stopped trial to save a checkpoint and close its run
LOCAL = "local"
EXIT_STORE_UNREACHABLE = 3  # exit code of a worker that could not reach its queue
POLL_SECONDS = 2.0  # between two calls of tick; a worker that ends wakes the launcher at once
EXTRA = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
Tick = Callable[[], bool]  # called regularly; False: stop


class Engine(Protocol):
    """Start workers of a queue and wait for them."""

    share_gpus: bool

    def run(self, queue_uri: str, queue_name: str, count: int, tick: Tick) -> None:
        """Run workers until all have ended, or until `tick` returns False.

        Args:
            queue_uri: URI of the Optuna storage.
            queue_name: name of the queue.
            count: number of workers.
            tick: called about every second or two by the launching process.
        """


def launcher_names() -> list[str]:
    """Return the names of the bundled presets."""
    return [LOCAL, *group_options("launcher")]


def build_engine(name: str, root: Path, options: list[str]) -> Engine:
    """Return the engine of a launcher.

    Args:
        name: `local` or the name of a preset.
        root: folder of outputs, which the launcher's own files go to.
        options: Hydra overrides of the preset, such as `hydra.launcher.partition=gpu`.

    Raises:
        ConfigError: if the launcher does not exist, is not installed, or rejects an option.
    """
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


class LocalEngine(Engine):
    """Run worker processes on this machine; replace one that dies while trials wait."""

    share_gpus = True

    def run(self, queue_uri: str, queue_name: str, count: int, tick: Tick) -> None:
        def start(index: int) -> _WorkerProcess:
            return _WorkerProcess(index, _start(queue_uri, queue_name, index), time.monotonic())

        workers: list[_WorkerProcess] = []
        shortlived = 0
        try:
            workers.extend(start(index) for index in range(count))
            while workers and tick():
                multiprocessing.connection.wait([worker.process.sentinel for worker in workers], timeout=POLL_SECONDS)
                for worker in [worker for worker in workers if not worker.process.is_alive()]:
                    workers.remove(worker)
                    if worker.process.exitcode == 0:
                        continue
                    shortlived = shortlived + 1 if time.monotonic() - worker.begun < 5 else 0
                    if shortlived < 2 * count:  # otherwise workers fail at the start
                        tick()
                        workers.append(start(worker.index))
        finally:
            _stop_workers()


def _start(queue_uri: str, queue_name: str, index: int) -> SpawnProcess:
    context = multiprocessing.get_context("spawn")  # PyTorch's threads may hang after a fork
    process = context.Process(target=_run_worker, args=(queue_uri, queue_name, index), name=f"worker {index}")
    # Ctrl-C and the end of a terminal reach all of its processes. Workers have these signals blocked: the launcher ends
    # them. The resource tracker comes first, because its start would unblock them.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _run_worker(queue_uri: str, queue_name: str, index: int) -> None:
    # os._exit below would leak the semaphore of tqdm's default lock, which Python reports when the launcher ends.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_stop_with_launcher, daemon=True).start()
    try:
        code = work(queue_uri, queue_name, index)
    except StoreError:  # also raised in the launcher, which reports it once
        code = EXIT_STORE_UNREACHABLE
    except Exception:
        print(masked(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # the normal exit collects all of PyTorch's objects, which takes up to 20 s


def _stop_with_launcher() -> None:
    """Stop this worker when its launcher has died, which no other process does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _stop_workers() -> None:
    """Let all workers save a checkpoint and return their trials; kill slow ones, and all after a second signal.

    A signal may arrive between a worker's start and its registration, so all child processes are stopped.
    """
    workers = multiprocessing.active_children()
    if not workers:
        return
    for process in workers:
        process.terminate()
    print(
        f"stopping: {len(workers)} workers save a checkpoint and return their trials, within {STOP_SECONDS:.0f} s; "
        "Ctrl-C again ends them at once",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + STOP_SECONDS
    try:
        with waiting("") as wait:
            while workers and time.monotonic() < until:
                wait.what = f"{len(workers)} workers to save a checkpoint and stop"
                multiprocessing.connection.wait([process.sentinel for process in workers], timeout=1.0)
                workers = [process for process in workers if process.is_alive()]
    finally:
        for process in workers:
            process.kill()
        for process in workers:
            process.join()


class HydraEngine(Engine):
    """Run workers as jobs of a Hydra launcher: job i of a multirun is worker i."""

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
        show = threading.Thread(target=_tick_until, args=(tick, ended), daemon=True)
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
        folder = quoted(str((self._root / "launches").resolve()))
        words = [f"launcher={self._name}", f"hydra.sweep.dir={folder}", *options]
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


def _tick_until(tick: Tick, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        tick()


def run_worker_job(config: DictConfig) -> int:
    """Run one worker as a Hydra job.

    Args:
        config: has `queue.uri`, `queue.name` and `queue.worker`, the worker's index.

    Returns:
        The exit code: that of `sweeps.execution.worker.work`, or 3 if the queue stays unreachable.
    """
    try:
        return work(str(config.queue.uri), str(config.queue.name), int(config.queue.worker))
    except StoreError as error:  # other workers may still reach it
        print(f"microdit-sweep: worker {config.queue.worker} stops: {masked(str(error))}", file=sys.stderr)
        return EXIT_STORE_UNREACHABLE
