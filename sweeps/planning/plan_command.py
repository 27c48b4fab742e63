"""Print what a study would run and cost (`microdit-sweep plan`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from microdit.common.contract import Tag
from sweeps import tracking
from sweeps.config.study import Study
from sweeps.execution.launch_spec import Options
from sweeps.execution.queue.trial_queue import STATES, open_queue
from sweeps.planning.cost_estimate import EstimateOptions, plan_estimates
from sweeps.planning.tables import estimate_table, plan_table, shared_note
from sweeps.planning.trials import Trial, duplicate_training_keys, plan_trials
from sweeps.tracking.uris import may_exist


def plan_study(studies: Sequence[Study], overrides: Sequence[str], options: Options, estimate: EstimateOptions) -> int:
    """Print the trials of studies, their cost, and their estimated time and price.

    Nothing is trained or encoded.

    Args:
        studies: the studies, at one scale.
        overrides: `key=value` words for all arms.
        options: options of the launch.
        estimate: options of the estimate.

    Returns:
        0, the exit code.
    """
    store = tracking.Store(options.uri, options.root) if options.reuse and may_exist(options.uri) else None
    plans = {study.name: plan_trials(study, overrides, complete=False) for study in studies}
    for study in studies:
        trials = plans[study.name]
        states = _states(study, trials, store, options)
        print(f"{study.name}: {study.file.question}\n")
        print(plan_table(study, trials, states, options.wide), flush=True)
        over = {key for key, state in states.items() if state in ("done", "reused")}
        duplicates = set() if study.file.search else duplicate_training_keys(trials) - over
        if duplicates:
            print(f"trained once for several trials that differ only in evaluation; trainings saved: {len(duplicates)}")
        over |= duplicates
        if estimate.measure and len(over) < len(states):
            note = "measuring a few training steps of each network on this machine (measure=false skips it)"
            print(note, file=sys.stderr, flush=True)
        arms = list(study.arms)
        rows = plan_estimates(trials, over, estimate)
        rows.sort(key=lambda row: arms.index(row.arm) if row.arm in arms else 0)
        print(f"\n{estimate_table(rows, estimate, options.workers, options.wide)}\n")
    if len(studies) > 1:
        print(shared_note(plans))
    return 0


def _states(study: Study, trials: Sequence[Trial], store: tracking.Store | None, options: Options) -> dict[str, str]:
    """Return a state per trial key: done, reused (from another study), failed, running or pending."""
    states = dict.fromkeys((trial.key for trial in trials), "pending")
    if store is not None and not study.file.search:
        for trial in trials:
            found = store.finished_trial(trial)
            if found is not None:
                here = found.data.tags.get(Tag.STUDY) == study.name
                states[trial.key] = "done" if here else "reused"
    queue = open_queue(options.queue_uri, f"{study.name}/{study.scale}/")
    for attempt in queue.latest().values() if queue is not None else []:
        key = attempt.user_attrs["key"]
        state = STATES[attempt.state]
        if states.get(key) == "pending" and state != "waiting":
            states[key] = "done" if state == "pruned" else state
    return states
