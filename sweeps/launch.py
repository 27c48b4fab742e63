"""A study from plan to table: what is there already, what must run, and how it went."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sweeps.progress import Board
from sweeps.runner import run_jobs
from sweeps.store import STATUS_DONE, Launch, Store
from sweeps.study import Study
from sweeps.summary import plan_table, result_table
from sweeps.trials import Trial, plan_trials, training_flops
from sweeps.worker import Job


def plan_study(study: Study, overrides: Sequence[str], root: Path, uri: str) -> int:
    """Prints the trials and their cost; trains nothing."""
    trials = plan_trials(study, overrides, root)
    store = Store(uri, root)
    done = {trial.key: "" for trial in trials if store.finished(trial.key) is not None}
    print(f"{study.file.question}\n")
    print(plan_table(study, trials, done))
    return 0


def launch_study(
    study: Study, overrides: Sequence[str], root: Path, uri: str, workers: int, reuse: bool, command: str
) -> int:
    """Runs what isn't finished yet; returns 1 where a trial failed."""
    suffix = "" if reuse else time.strftime("-%Y%m%d-%H%M%S")
    trials = plan_trials(study, overrides, root, suffix)
    store = Store(uri, root)
    launch = store.start_launch(study, trials, command, fresh=not reuse)
    jobs = _jobs(store, launch, trials, command, reuse)
    print(f"{study.file.question}")
    print(f"study {study.name}, scale {study.scale}: {len(trials)} trials, {len(trials) - len(jobs)} finished before\n")
    failed = _run(jobs, trials, workers, launch) if jobs else {}
    store.finish_launch(launch, len(failed))
    print()
    print(result_table(list(study.arms), store.final_metrics(launch)))
    print(f"\nruns      {uri}\noutputs   {root / study.name / study.scale}")
    option = "" if uri == Store(uri, root).uri and root == Path("runs") else f" tracking_uri={uri}"
    print(f"report    microdit-report {study.name} scale={study.scale}{option}")
    print(f"browse    microdit-sweep ui{'' if root == Path('runs') else f' root={root}'}")
    for number, words in failed.items():
        trial = trials[number]
        print(f"\nFAILED {trial.name}: {words}", file=sys.stderr)
        print(f"  log    {Path(trial.config.output_dir) / 'log.txt'}", file=sys.stderr)
        print(f"  again  microdit train {Path(trial.config.output_dir) / 'config.yaml'}", file=sys.stderr)
    return 1 if failed else 0


def _jobs(store: Store, launch: Launch, trials: Sequence[Trial], command: str, reuse: bool) -> list[Job]:
    """The trials to run, each with the interrupted run that it goes on with; finished ones are shown as reused."""
    jobs = []
    for number, trial in enumerate(trials):
        child = store.child(launch, trial.key)
        if child is not None and child.info.status == STATUS_DONE:
            continue
        origin = store.finished(trial.key) if reuse and child is None else None
        if origin is not None:
            store.reuse(launch, trial, origin)
            continue
        jobs.append(Job(number, trial, child.info.run_id if child is not None else None, command))
    return jobs


def _run(jobs: Sequence[Job], trials: Sequence[Trial], workers: int, launch: Launch) -> dict[int, str]:
    from microdit.run import prepare

    told = False
    seen = set()
    for job in jobs:
        config = job.trial.config
        key = (config.data, config.autoencoder, config.text, config.model.input_size, config.evaluation.samples)
        if key not in seen:
            seen.add(key)
            if not told:
                print("encoding the data (once; later sweeps find it in the cache)", file=sys.stderr, flush=True)
                told = True
            prepare(config)
    left = {job.number for job in jobs}
    costs = [float(training_flops(trial.config)) if i in left else 0.0 for i, trial in enumerate(trials)]
    return run_jobs(jobs, workers, launch, Board(trials, costs)).failed
