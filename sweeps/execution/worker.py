"""Run trials from the queue in one process, which imports PyTorch once, until none waits.

A worker is the same for all launchers: the local engine, joblib, submitit and Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout

from microdit.common.contract import (
    CONFIG_FILE,
    IMAGES_PER_SECOND,
    SEED,
    TRAIN_LOSS,
    VAL_LOSS_CURVE,
    MlflowTag,
    Outcome,
    Role,
    Status,
    Tag,
)
from microdit.common.errors import ConfigError, DivergenceError, MicroditError, StopTraining
from microdit.common.finite import is_sound
from microdit.common.hardware import visible_gpus
from microdit.common.process.terminal import prepare_streams
from microdit.common.stores.secrets import masked
from microdit.config.schema import save_config
from microdit.pipeline.train_and_evaluate import run
from microdit.training.graceful_stop import GracefulStop
from sweeps.config.search_space import build_pruner, build_sampler, suggest
from sweeps.execution.checkpoint_reuse import LOCK_TIMEOUT_SECONDS, reuse_trained_checkpoint
from sweeps.execution.launch_spec import LaunchSpec, apply_suggestion, shown_metrics, trial_of, unsound_scores
from sweeps.execution.queue.heartbeat import Heartbeat
from sweeps.execution.queue.trial_queue import LAUNCH, STOP_KEY, Queue
from sweeps.execution.trial_log import redirect_output
from sweeps.planning.prepare import prepare_trials
from sweeps.planning.trials import Trial
from sweeps.tracking.mlflow_logger import MlflowLogger, RunSpec
from sweeps.tracking.mlflow_store import Launch, Store
from sweeps.tracking.retry import StoreError, is_store_error, store_trouble, with_retries
from sweeps.tracking.uris import QUEUE, TRACKING, may_exist, unmask_from_env

PROGRESS_KEYS = ("step", TRAIN_LOSS, IMAGES_PER_SECOND)


class Worker:
    """Run the trials of a queue in this process.

    Args:
        queue: the queue, which also holds the settings of the launch.
        stop: requests a stop; set by SIGTERM, which the heartbeat also sends if another worker has claimed the trial.
    """

    def __init__(self, queue: Queue, stop: GracefulStop) -> None:
        self.queue, self.stop = queue, stop
        self.spec = LaunchSpec.of(queue.about()[LAUNCH])
        self.store = Store(_present(unmask_from_env(self.spec.tracking_uri, TRACKING)), Path(self.spec.root))
        self.launch = Launch(self.store.uri, self.spec.experiment_id, self.spec.parent_id)
        if self.spec.search:
            queue.study.pruner = build_pruner(self.spec.pruner, self.spec.source)

    def work(self) -> None:
        """Run trials until none waits.

        If the worker is stopped, the trial returns to the queue and KeyboardInterrupt is raised.
        """
        while not self.queue.about().get(STOP_KEY):
            claimed = self.queue.claim(self._before)
            if claimed is None:
                return
            self._serve(claimed)

    def _before(self, number: int) -> None:
        if self.spec.search:
            spec = self.spec
            self.queue.study.sampler = build_sampler(spec.sampler, spec.sampler_seed, number, spec.source)

    def _serve(self, claimed: optuna.Trial) -> None:
        with Heartbeat(self.queue, claimed._trial_id) as heartbeat:
            try:
                trial = self._trial(claimed)
                folder = Path(trial.config.output_dir)
                folder.mkdir(parents=True, exist_ok=True)
                with (
                    FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_SECONDS),
                    reuse_trained_checkpoint(trial, Path(self.spec.root), self.spec.reuse) as origin,
                ):
                    self._run(trial, claimed, heartbeat, origin)
            except Timeout:
                heartbeat.stop()
                self.queue.release(claimed, "another process writes to its folder, or trains the same network")
            except KeyboardInterrupt:
                heartbeat.stop()
                if heartbeat.lost:  # another worker has it now: leave its run and folder alone
                    self.stop.requested = False
                    return
                self.queue.release(claimed, "interrupted")
                raise
            except Exception as error:  # an invalid configuration of a search, an unreachable store
                self._failed(claimed, error, None, heartbeat)

    def _trial(self, claimed: optuna.Trial) -> Trial:
        trial = trial_of(claimed.user_attrs, self.spec)
        if not self.spec.search:
            for name, choices in self.queue.about()["choices"].items():
                with_retries(claimed.suggest_categorical, name, choices)
            return trial
        trial = apply_suggestion(trial, with_retries(suggest, claimed, self.spec.search, self.spec.source), self.spec)
        [trial] = prepare_trials([trial], Path(self.spec.root), self.spec.suffix)
        self.queue.note(claimed._trial_id, key=trial.key, folder=trial.config.output_dir)
        return trial

    def _run(self, trial: Trial, claimed: optuna.Trial, heartbeat: Heartbeat, trained_in: str) -> None:
        before = self.store.child(self.launch, trial.key)
        if before is not None and before.info.status == Status.FINISHED:
            if not unsound_scores(before.data.metrics):  # ended, but killed before the queue was updated
                return self._done(claimed, before.data.metrics, heartbeat)
            before = None  # it counts as failed
        origin = self.store.finished_trial(trial) if self.spec.reuse else None
        if origin is not None:
            self.store.reuse(self.launch, trial, origin)
            self.queue.note(claimed._trial_id, reused_from=origin.info.run_id)
            return self._done(claimed, origin.data.metrics, heartbeat)
        run_id = before.info.run_id if before is not None else None
        recorder = self._recorder(trial, claimed, heartbeat, run_id, trained_in)
        metrics = self._train(trial, recorder, claimed, heartbeat)
        return None if metrics is None else self._done(claimed, metrics, heartbeat)

    def _train(
        self, trial: Trial, recorder: Any, claimed: optuna.Trial, heartbeat: Heartbeat
    ) -> dict[str, float] | None:
        """Train and return the final metrics, or None if the trial was pruned or failed; all are recorded."""
        folder = Path(trial.config.output_dir)
        save_config(trial.config, folder / CONFIG_FILE)  # needed by the rerun command, also after a failure
        with open(folder / "log.txt", "a", encoding="utf-8", buffering=1) as log, redirect_output(log):
            try:
                recorder.open()
                return run(trial.config, recorder, stop=self.stop)
            except StopTraining:
                recorder.outcome(Outcome.PRUNED)
                heartbeat.stop()
                self.queue.prune(claimed)
            except KeyboardInterrupt:
                if not heartbeat.lost:
                    recorder.finish(Status.KILLED)
                raise
            except Exception as error:
                with contextlib.suppress(OSError):  # the disk may be full
                    log.write(masked(traceback.format_exc()))
                if isinstance(error, DivergenceError) and self.spec.divergence == "data":
                    self._diverged(claimed, error, recorder, heartbeat)
                else:
                    self._failed(claimed, error, recorder, heartbeat)
        return None

    def _diverged(self, claimed: optuna.Trial, error: DivergenceError, recorder: Any, heartbeat: Heartbeat) -> None:
        """Record a divergence as a result: its step, and no score."""
        heartbeat.stop()
        recorder.outcome(Outcome.DIVERGED)
        recorder.fail(str(error), "")
        self.queue.prune(claimed, Outcome.DIVERGED)

    def _done(self, claimed: optuna.Trial, metrics: Mapping[str, float], heartbeat: Heartbeat) -> None:
        values = self.spec.values(metrics)
        heartbeat.stop()
        self.queue.note(claimed._trial_id, final=shown_metrics(metrics))
        self.queue.complete(claimed, values)

    def _failed(self, claimed: optuna.Trial, error: Exception, recorder: Any, heartbeat: Heartbeat) -> None:
        """Record the error on run and trial, and queue the trial again if a retry can help."""
        heartbeat.stop()
        known = isinstance(error, MicroditError)
        reason = masked(" ".join(str(error).split()) if known else f"{type(error).__name__}: {error}")
        if recorder is not None:
            with contextlib.suppress(Exception):  # the store itself may have failed
                recorder.fail(reason, masked(traceback.format_exc()))
        permanent = isinstance(error, (DivergenceError, ConfigError))  # the same seed diverges again
        tried = claimed.user_attrs.get("failures", 0)
        retry = not permanent and tried < self.spec.max_retries and not self.spec.fail_fast
        self.queue.fail(claimed, reason, retry)
        if self.spec.fail_fast:
            self.queue.describe(**{STOP_KEY: reason})

    def _recorder(
        self, trial: Trial, claimed: optuna.Trial, heartbeat: Heartbeat, run_id: str | None, trained_in: str
    ) -> Any:
        folder = Path(trial.config.output_dir).resolve()
        tags = {
            MlflowTag.PARENT: self.launch.parent_id,
            Tag.ROLE: Role.TRIAL,
            **trial.identity,
            Tag.STUDY: trial.study,
            Tag.ARM: trial.arm,
            Tag.SCALE: trial.scale,
            Tag.ATTEMPT: str(claimed.user_attrs.get("tries", 1)),
            Tag.RERUN: f"microdit train {folder / CONFIG_FILE}",
            Tag.LOG: str(folder / "log.txt"),
        }
        if trained_in:
            tags[Tag.TRAINED_IN] = trained_in  # by a trial that differs only in evaluation

        def on_metrics(step: int, values: Mapping[str, float]) -> None:
            if TRAIN_LOSS in values:
                heartbeat.progress = {
                    name: value for name, value in {"step": step, **values}.items() if name in PROGRESS_KEYS
                }
            if is_sound(values.get(VAL_LOSS_CURVE)) and self.spec.search and len(self.spec.objectives) == 1:
                with_retries(claimed.report, values[VAL_LOSS_CURVE], step)
                if step < trial.config.training.steps and with_retries(claimed.should_prune):
                    raise StopTraining(f"pruned at step {step}")

        spec = self.spec
        run_spec = RunSpec(spec.experiment_id, trial.name, tags, {SEED: trial.seed, **trial.params}, spec.command)
        return MlflowLogger(self.store.uri, run_spec, run_id, on_metrics)


def work(queue_uri: str, queue_name: str, index: int = 0) -> int:
    """Run a worker process.

    Args:
        queue_uri: URI of the Optuna storage; passwords may be masked.
        queue_name: name of the queue.
        index: index of the worker, which determines its GPU.

    Returns:
        0 if no trial waits; 130 if it was stopped.

    Raises:
        StoreError: if the queue stays unreachable; the trial is then freed like that of a dead worker.
    """
    prepare_streams()
    stop = GracefulStop()
    if threading.current_thread() is threading.main_thread():
        # submitit sends SIGUSR2 before a SLURM job's time is up, a closed terminal SIGHUP.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, lambda _signal, _frame: stop.ask())
    try:
        queue = Queue(_present(unmask_from_env(queue_uri, QUEUE)), queue_name)
        choose_gpu(LaunchSpec.of(queue.about()[LAUNCH]), index)
        Worker(queue, stop).work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, MicroditError) or not is_store_error(error):
            raise
        raise StoreError(store_trouble(error)) from error
    return 0


def _present(uri: str) -> str:
    """Return `uri`; raise StoreError if its sqlite file is missing, because opening it would create a new one."""
    if not may_exist(uri):
        raise StoreError(f"the store {masked(uri)} is missing; was it removed or moved? Put it back")
    return uri


def choose_gpu(spec: LaunchSpec, index: int) -> None:
    """Assign a worker its share of the visible GPUs, before CUDA is initialized.

    Args:
        spec: settings of the launch.
        index: index of the worker.
    """
    devices = visible_gpus() if spec.share_gpus else []
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
