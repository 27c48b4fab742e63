"""A study from plan to table: what is there already, what must run, and how it went."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from microdit.budget import training_flops
from microdit.training.progress import format_seconds
from sweeps.progress import Board
from sweeps.runner import run_jobs
from sweeps.store import STATUS_DONE, Launch, Store, default_uri, is_there
from sweeps.study import Study
from sweeps.summary import plan_table, result_table, time_note
from sweeps.trials import Trial, plan_trials, prepare_trials
from sweeps.worker import Job


@dataclass(frozen=True)
class Options:
    """How a study is launched; nothing here changes a result."""

    root: Path
    uri: str
    workers: int
    reuse: bool
    command: str


def plan_study(study: Study, overrides: Sequence[str], options: Options) -> int:
    """Prints the trials and their cost; trains and encodes nothing."""
    trials = plan_trials(study, overrides, complete=False)
    store = Store(options.uri, options.root) if options.reuse and is_there(options.uri) else None
    done = {trial.key for trial in trials if store is not None and store.finished(trial.identity) is not None}
    print(f"{study.file.question}\n")
    print(plan_table(study, trials, done))
    return 0


def launch_study(study: Study, overrides: Sequence[str], options: Options) -> int:
    """Runs what isn't finished yet; returns 1 where a trial failed."""
    begin = time.monotonic()
    suffix = "" if options.reuse else time.strftime("-%Y%m%d-%H%M%S")
    trials = plan_trials(study, overrides)
    store = Store(options.uri, options.root)
    print(f"{study.file.question}\nstudy {study.name}, scale {study.scale}: {len(trials)} trials", flush=True)
    _tell("preparing the data (encoded once, then kept in the cache)")
    trials = prepare_trials(trials, options.root, suffix)
    launch = store.start_launch(study, trials, options.command, fresh=not options.reuse)
    status = "KILLED"
    try:
        with interruptible():
            jobs = _jobs(store, launch, trials, options)
            _tell(f"{len(trials) - len(jobs)} finished before, {len(jobs)} to run, {options.workers} at a time")
            failed = _run(store, launch, jobs, trials, options.workers) if jobs else {}
        status = "FAILED" if failed else STATUS_DONE
    finally:
        store.finish_launch(launch, status)
    results = store.final_metrics(launch)
    print(f"\n{result_table(list(study.arms), results)}\n")
    if study.file.holds == "time":
        print(f"{time_note(results)}\n")
    _where(study, options, time.monotonic() - begin)
    _failures(failed, trials)
    return 1 if failed else 0


def _jobs(store: Store, launch: Launch, trials: Sequence[Trial], options: Options) -> list[Job]:
    """The trials to run, each with the interrupted run that it goes on with; finished ones are shown as reused."""
    jobs = []
    for number, trial in enumerate(trials):
        child = store.child(launch, trial.key)
        if child is not None and child.info.status == STATUS_DONE:
            continue
        origin = store.finished(trial.identity) if options.reuse and child is None else None
        if origin is not None:
            store.reuse(launch, trial, origin)
            continue
        run_id = child.info.run_id if child is not None else None
        attempt = 1 if child is None else int(child.data.tags.get("microdit.attempt", "1")) + 1
        jobs.append(Job(number, trial, run_id, attempt, options.command))
    return jobs


def _run(store: Store, launch: Launch, jobs: Sequence[Job], trials: Sequence[Trial], workers: int) -> dict[int, str]:
    to_run = {job.number for job in jobs}
    costs = [float(training_flops(trial.config)) if i in to_run else 0.0 for i, trial in enumerate(trials)]

    def lost(job: Job, words: str) -> None:
        store.mark_failed(launch, job.trial.key, words)

    return run_jobs(jobs, workers, launch, Board(trials, costs), lost).failed


@contextmanager
def interruptible() -> Iterator[None]:
    """A polite `kill` ends a sweep as Ctrl-C does: workers close their runs first."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _where(study: Study, options: Options, seconds: float) -> None:
    elsewhere = "" if options.uri == default_uri(Path("runs")) else f" tracking_uri={options.uri}"
    print(f"took      {format_seconds(seconds)}")
    print(f"runs      {options.uri}")
    print(f"outputs   {options.root / study.name / study.scale}")
    print(f"report    microdit-report {study.name} scale={study.scale}{elsewhere}")
    print(f"browse    microdit-sweep ui{elsewhere}", flush=True)


def _failures(failed: Mapping[int, str], trials: Sequence[Trial]) -> None:
    for number, words in sorted(failed.items()):
        folder = Path(trials[number].config.output_dir)
        _tell(f"\nFAILED {trials[number].name}: {words}")
        _tell(f"  log    {folder / 'log.txt'}\n  again  microdit train {folder / 'config.yaml'}")
    if failed:
        _tell(f"\n{len(failed)} of {len(trials)} trials failed; the same command tries them again")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
