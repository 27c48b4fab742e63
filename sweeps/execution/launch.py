"""Launch a study: plan, fill the queue, run the workers, print the results."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.trial import TrialState

from microdit.common.contract import FINAL_VAL_LOSS, Status, objective_metric
from microdit.common.files import atomic
from microdit.common.process.identity import readable
from microdit.common.process.progress_bar import format_seconds
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import masked
from microdit.pipeline.cost import training_flops
from sweeps.config.study import Study
from sweeps.execution.interruption import interruptible, undisturbed
from sweeps.execution.launch_register import Presence, end_abandoned
from sweeps.execution.launch_spec import LaunchSpec, Options, shown_metrics, trial_attributes, unsound_scores
from sweeps.execution.launchers import Engine, Tick, build_engine
from sweeps.execution.progress import ProgressDisplay
from sweeps.execution.queue.trial_queue import ENDED, LAUNCH, PLAN, STOP_KEY, WORKER, Queue
from sweeps.planning.prepare import prepare_trials
from sweeps.planning.tables import result_table, time_note
from sweeps.planning.trials import Trial, plan_trials
from sweeps.tracking.mlflow_store import Launch, Store
from sweeps.tracking.uris import default_uri, exported_to_children

POLL_OTHERS_SECONDS = 2.0  # between two checks of trials in workers of other launchers


@dataclass(frozen=True)
class Sweep:
    """A launched study: its trials, their MLflow store and launch, and their queue."""

    study: Study
    trials: list[Trial]
    store: Store
    launch: Launch
    queue: Queue


def launch_study(study: Study, overrides: Sequence[str], options: Options) -> int:
    """Run the unfinished trials of a study and print the results.

    Args:
        study: the study at one scale.
        overrides: `key=value` words for all arms.
        options: where and how to run.

    Returns:
        The exit code: 1 if a trial failed or was not begun, else 0.
    """
    begin = time.monotonic()
    with interruptible():
        engine = build_engine(options.launcher, options.root, list(options.launcher_options))
        sweep = _run_plan(study, overrides, options, engine)
    study = sweep.study
    results = sweep.store.final_metrics(sweep.launch)
    arms = list(dict.fromkeys([*study.arms, *(arm for arm, _, _ in results)]))
    print(f"\n{result_table(arms, results, study.file.metrics.primary, options.wide)}\n")
    if study.file.holds == "time":
        print(f"{time_note(results)}\n")
    if study.file.search:
        print(f"{best_point(sweep.queue)}\n")
    _print_locations(study, options, time.monotonic() - begin)
    return _failures(sweep)


def _run_plan(study: Study, overrides: Sequence[str], options: Options, engine: Engine) -> Sweep:
    """Run the plan; always end the launch's MLflow run."""
    with waiting("the study to be planned"):
        suffix = "" if options.reuse else time.strftime("-%Y%m%d-%H%M%S")
        trials = plan_trials(study, overrides)
        study = with_validation_metric(study, trials)
    print(f"{study.file.question}\nstudy {study.name}, scale {study.scale}: {len(trials)} trials", flush=True)
    with waiting("the MLflow store to open"):
        presence = Presence(Store(options.uri, options.root, options.artifacts))
    status = Status.KILLED
    try:
        sweep = _begin(study, trials, suffix, options, engine, presence)
        _work(sweep, engine, presence, options)
        count = sweep.queue.count()
        status = Status.FAILED if count.failed or count.waiting else Status.FINISHED
    finally:
        with undisturbed("closing the launch's run"), waiting("the launch's run in MLflow to be closed"):
            presence.leave(status)
    return sweep


def _begin(
    study: Study, trials: list[Trial], suffix: str, options: Options, engine: Engine, presence: Presence
) -> Sweep:
    """Prepare the data, open the queue and add the unfinished trials."""
    store = presence.store
    _report("preparing the data (encoded once, then kept in the cache)")
    with waiting("the data to be prepared"):
        trials = prepare_trials(trials, options.root.absolute(), suffix)
    options.root.mkdir(parents=True, exist_ok=True)
    for folder, depth in ((options.root, 0), (options.root / ".trained", 0), (options.root / study.name, 3)):
        atomic.sweep(folder, depth)
    with waiting("the queue to be filled"), FileLock(options.root / ".launch.lock"):  # the same command twice at once
        objectives = objectives_of(study)
        queue = Queue(options.queue_uri, queue_name(study, trials, suffix), list(objectives.values()))
        end_abandoned(options.queue_uri, options.uri, lambda: store)
        presence.enter(queue)
        launch = store.start_launch(study, trials, options.command, not options.reuse, queue.name)
        spec = LaunchSpec(
            tracking_uri=masked(options.uri),
            experiment_id=launch.experiment_id,
            parent_id=launch.parent_id,
            study=study.name,
            scale=study.scale,
            source=study.source,
            root=str(options.root.absolute()),
            suffix=suffix,
            command=options.command,
            objectives=tuple(objectives),
            reuse=options.reuse,
            max_retries=options.max_retries,
            fail_fast=options.fail_fast,
            share_gpus=engine.share_gpus,
            search=dict(study.file.search),
            sampler=study.file.sampler,
            pruner=study.file.pruner,
            divergence=study.file.divergence,
            directions=tuple(objectives.values()),
        )
        sweep = Sweep(study, trials, store, launch, queue)
        _fill(sweep, spec, options)
    return sweep


def objectives_of(study: Study) -> dict[str, str]:
    """Return each objective reported to Optuna and its direction.

    These are the search's own, or else the primary metric.
    """
    return dict(study.file.objectives) or {study.file.metrics.primary: study.file.metrics.direction}


def with_validation_metric(study: Study, trials: Sequence[Trial]) -> Study:
    """Return the study, judged by the validation loss if no samples are scored.

    Args:
        study: the study.
        trials: its trials, which all score samples or none.
    """
    if trials[0].config.evaluation.samples:
        return study
    metrics = dataclasses.replace(study.file.metrics, primary=FINAL_VAL_LOSS, direction="minimize")
    return dataclasses.replace(study, file=dataclasses.replace(study.file, metrics=metrics))


def queue_name(study: Study, trials: Sequence[Trial], suffix: str = "") -> str:
    """Return the name of a plan's queue.

    Adding trials to a search keeps the name, so its queue is reused.

    Args:
        study: the study.
        trials: all trials of the plan.
        suffix: makes the name unique if finished trials must not be reused.
    """
    if study.file.search:
        first = trials[0]
        space = (study.file.search, study.file.sampler, study.file.pruner, study.file.objectives)
        identity = f"{first.config.seed}/{first.data_fingerprint}/{first.feature_net}/{space}/{first.key}"
    else:
        identity = "\n".join(sorted("/".join(trial.identity.values()) for trial in trials))
    return f"{study.name}/{study.scale}/{sha256(identity.encode()).hexdigest()[:12]}{suffix}"


def _fill(sweep: Sweep, spec: LaunchSpec, options: Options) -> None:
    """Add the plan to the queue; trials that are finished, here or in another study, are added as finished."""
    queue, trials = sweep.queue, sweep.trials
    arms = list(dict.fromkeys(trial.arm for trial in trials))
    choices = {} if spec.search else {"arm": arms, "seed": sorted({trial.seed for trial in trials})}
    queue.describe(**{LAUNCH: spec.as_mapping(), STOP_KEY: "", "choices": choices, PLAN: len(trials)})
    _requeue_dead_workers(sweep)
    count = queue.count()
    joins = count.running > 0
    for number, trial in enumerate(trials if not spec.search else []):
        found = _finished(sweep, trial, options)
        if found is not None:
            attributes = {**trial_attributes(trial), "final": shown_metrics(found.data.metrics)}
            queue.add_finished(number, _fixed(trial), spec.values(found.data.metrics), attributes)
    planned = {i: (({} if spec.search else _fixed(t)), trial_attributes(t)) for i, t in enumerate(trials)}
    queue.fill(planned, again=not joins)
    done = queue.count()
    beside = f", {done.running} in other workers" if joins else ""
    finished = done.done + done.pruned
    where = masked(queue.uri)
    _report(f"{finished} finished before, {done.waiting} to run{beside}, {options.workers} at a time ({where})")
    _report_outdated(sweep, options)


def _report_outdated(sweep: Sweep, options: Options) -> None:
    """Print one line about runs of older algorithms that the pending trials do not reuse, and why."""
    tries = sweep.queue.latest().values() if options.reuse else ()
    names = {(t.user_attrs["arm"], int(t.user_attrs["seed"])) for t in tries if t.state not in ENDED}
    if line := sweep.store.outdated(sweep.launch.experiment_id, sweep.study.scale, names):
        _report(line)


def _finished(sweep: Sweep, trial: Trial, options: Options) -> Any | None:
    """Return the finished run of a trial under this launch, or None; a run of another launch is copied."""
    child = sweep.store.child(sweep.launch, trial.key)
    if child is not None and child.info.status == Status.FINISHED and (wrong := unsound_scores(child.data.metrics)):
        _report(f"FAILED  {trial.name}: its run {child.info.run_id} finished, but {wrong}; it counts as failed")
        return None
    if child is not None:
        return child if child.info.status == Status.FINISHED else None
    origin = sweep.store.finished_trial(trial) if options.reuse else None
    if origin is not None:
        sweep.store.reuse(sweep.launch, trial, origin)
    return origin


def _fixed(trial: Trial) -> dict[str, Any]:
    return {"arm": trial.arm, "seed": trial.seed}


def _work(sweep: Sweep, engine: Engine, presence: Presence, options: Options) -> None:
    """Start workers until no trial waits, then wait for the trials that other launchers' workers run."""
    metric, direction = next(iter(objectives_of(sweep.study).items()))
    costs = [float(training_flops(trial.config)) for trial in sweep.trials]
    display = ProgressDisplay(costs, objective_metric(metric), direction)

    def tick() -> bool:
        presence.tick()
        for line in _requeue_dead_workers(sweep):
            display.print_line(line)
        display.update(sweep.queue.latest())
        return not (options.fail_fast and sweep.queue.about().get(STOP_KEY))

    tick()
    try:
        while tick():
            count = sweep.queue.count()
            if count.waiting:
                with exported_to_children(options.queue_uri, options.uri):
                    engine.run(sweep.queue.uri, sweep.queue.name, min(options.workers, count.waiting), tick)
                tick()
                after = sweep.queue.count()
                if after.waiting >= count.waiting and not after.running:
                    break  # workers ended without claiming a trial
            elif count.running:
                _wait_for_others(sweep, tick)
            else:
                break
    finally:
        display.close()


def _wait_for_others(sweep: Sweep, tick: Tick) -> None:
    """Wait while all unfinished trials run in workers of other launchers."""
    with waiting("trials of other launchers") as wait:
        while tick():
            held = [t.user_attrs for t in sweep.queue.tries(TrialState.RUNNING)]
            if not held or sweep.queue.count().waiting:
                break
            names = [f"{facts['name']} in {readable(facts.get(WORKER, ''))}" for facts in held]
            wait.what = f"{len(held)} trials of other launchers: {', '.join(names[:5])}"
            time.sleep(POLL_OTHERS_SECONDS)


def _requeue_dead_workers(sweep: Sweep) -> list[str]:
    """Queue the trials of dead workers again, and mark those that are given up in MLflow.

    Returns:
        One line per trial that is queued again.
    """
    again = []
    for attempt, why, given_up in sweep.queue.requeue_dead():
        if given_up:
            sweep.store.mark_dead(sweep.launch, attempt.user_attrs["key"], why)
        else:
            again.append(f"again   {attempt.user_attrs['name']}: {why}")
    return again


def best_point(queue: Queue) -> str:
    """Return the best trial of a search, or its Pareto front, as text."""
    found = queue.study.best_trials
    lines = []
    for trial in found[:10]:
        values = ", ".join(f"{value:.6g}" for value in trial.values)
        params = " ".join(f"{name}={value}" for name, value in trial.params.items())
        lines.append(f"{trial.user_attrs.get('arm', trial.number)}: {values} with {params}")
    title = f"Pareto front of {len(found)}" if len(queue.study.directions) > 1 else "best"
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines)])


def _print_locations(study: Study, options: Options, seconds: float) -> None:
    uri = masked(options.uri)
    elsewhere = "" if options.uri == default_uri(Path("runs")) else f" tracking_uri={uri}"
    print(f"took      {format_seconds(seconds)}")
    print(f"runs      {uri}")
    print(f"outputs   {options.root / study.name / study.scale}")
    print(f"report    microdit-report {study.name} scale={study.scale}{elsewhere}")
    print(f"browse    microdit-sweep ui{elsewhere}", flush=True)


def _failures(sweep: Sweep) -> int:
    """Print the trials without a result; return 1 if there are any."""
    latest = sweep.queue.latest()
    failed = {i: t for i, t in latest.items() if t.state.name == "FAIL"}
    for number, attempt in sorted(failed.items()):
        folder = Path(attempt.user_attrs.get("folder", sweep.trials[number].config.output_dir))
        _report(f"\nFAILED {attempt.user_attrs['name']}: {attempt.user_attrs.get('error', 'unknown')}")
        _report(f"  log    {folder / 'log.txt'}\n  again  microdit train {folder / 'config.yaml'}")
    if failed:
        _report(f"\n{len(failed)} of {len(latest)} trials failed; the same command tries them again")
    waiting = sum(t.state.name == "WAITING" for t in latest.values())
    if waiting:
        why = sweep.queue.about().get(STOP_KEY)
        _report(f"\n{waiting} of {len(latest)} trials were not begun{f' (fail_fast: {why})' if why else ''}")
    return 1 if failed or waiting else 0


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
