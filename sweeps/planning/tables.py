"""Format the tables that a sweep prints: the plan before it and the results after it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from microdit.common.contract import SCORES, SECONDS, final_metric
from microdit.common.numbers import estimate, format_significant
from microdit.common.tables import text_table
from microdit.config.schema import Config
from microdit.model.cost import network as cost
from microdit.pipeline.cost import forward_flops, training_flops
from sweeps.config.study import Study
from sweeps.planning.cost_estimate import Estimate, EstimateOptions, total
from sweeps.planning.trials import Trial

STATES = ("done", "reused", "running", "failed", "pending")


def plan_table(study: Study, trials: Sequence[Trial], states: Mapping[str, str], wide: bool = False) -> str:
    """Return one row per arm: seeds, number of trials per state, parameters and FLOPs.

    Args:
        study: the study.
        trials: its trials.
        states: a state per trial key: done, reused, running, failed or pending.
        wide: whether to print all columns, however wide.
    """
    arms: dict[str, Config] = {trial.arm: trial.config for trial in trials}
    known = [name for name in STATES if name in ("done", "pending") or name in states.values()]
    rows = [["arm", "seeds", *known, "params", "active", "GFLOPs/image", "training PFLOPs"]]
    for arm in ["(all)"] if study.file.search else list(study.arms):
        own = trials if study.file.search else [trial for trial in trials if trial.arm == arm]
        config = own[0].config if study.file.search else arms[arm]
        rows.append(
            [
                arm,
                " ".join(str(seed) for seed in dict.fromkeys(trial.seed for trial in own)),
                *(str(sum(states[trial.key] == state for trial in own)) for state in known),
                f"{cost.parameters(config.model):,}",
                f"{cost.active_parameters(config.model):,}",
                f"{forward_flops(config) / 1e9:.3f}",
                format_significant(training_flops(config) / 1e15),
            ]
        )
    left = [trial for trial in trials if states[trial.key] not in ("done", "reused")]
    saved = sum(training_flops(trial.config) for trial in trials if states[trial.key] == "reused")
    reused = sum(states[trial.key] == "reused" for trial in trials)
    note = f", {reused} reused from other studies (saves {format_significant(saved / 1e15)} PFLOPs)" if reused else ""
    done = sum(states[trial.key] == "done" for trial in trials)
    total = sum(training_flops(trial.config) for trial in left)
    keep = [0, *range(2, len(rows[0]))]
    table = text_table(rows, wide, keep=keep)
    return table + f"\n\n{len(trials)} trials, {done} done{note}; {format_significant(total / 1e15)} PFLOPs to go"


def shared_note(plans: Mapping[str, Sequence[Trial]]) -> str:
    """Return how many runs and FLOPs are saved because studies share trials.

    Args:
        plans: all trials of each study, by its name.
    """
    every = [trial for trials in plans.values() for trial in trials]
    distinct = {trial.key: trial for trial in every}
    planned, distinct_only = (sum(training_flops(t.config) for t in part) for part in (every, distinct.values()))
    return (
        f"{len(every)} trials in {len(plans)} studies, {len(distinct)} of them distinct: sharing saves "
        f"{len(every) - len(distinct)} runs and {format_significant((planned - distinct_only) / 1e15)} of "
        f"{format_significant(planned / 1e15)} PFLOPs"
    )


def estimate_table(rows: Sequence[Estimate], options: EstimateOptions, workers: int, wide: bool = False) -> str:
    """Return one row per arm and their sum: hours and price of the pending trials.

    Hours are those on this machine and on the accelerator.

    Args:
        rows: one estimate per arm.
        options: options of the estimates.
        workers: number of trials that run at a time on this machine.
        wide: whether to print all columns, however wide.
    """
    device, everything = options.accelerator, total(rows)
    by_arm = {row.arm: row for row in rows}
    table = [["arm", "to run", "ms/image here", "hours here", f"{device.name} hours", "USD"]]
    for row in (*by_arm.values(), everything):
        speed = "-" if row.seconds_per_image is None else format_significant(1000 * row.seconds_per_image, 3)
        here = "-" if row.seconds is None else _hours(row.seconds)
        usd = "<0.01" if 0 < row.usd < 0.01 else f"{row.usd:,.2f}"
        table.append([row.arm, str(row.count), speed, here, _hours(row.accelerator_seconds), usd])
    notes = [
        "Training steps only: encoding the data, validation, sample images and scoring are not included.",
        f"{device.name}: {device.tflops:g} TFLOP/s dense bf16 peak at {options.utilisation:.3g} utilisation (small "
        f"networks reach less), {device.usd_per_hour:.2f} USD per hour.",
    ]
    if everything.seconds:
        at_once = f"; {workers} at a time at best {_hours(everything.seconds / workers)} hours" if workers > 1 else ""
        notes.append(
            "Here: from a few steps measured now (of one block if a step takes seconds), one trial after the "
            f"other{at_once}."
        )
    elif everything.seconds is None:
        why = "it has too little memory for them" if options.measure else "measure=false"
        notes.append(f"-: not measured on this machine ({why}).")
    return "\n".join([text_table(table, wide), "", *notes])


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return "<0.001" if 0 < hours < 0.001 else format_significant(hours, 3)


def result_table(
    arms: Sequence[str], results: Sequence[tuple[str, int, Mapping[str, float]]], primary: str = "", wide: bool = False
) -> str:
    """Return one row per arm: each score's mean and 95% Student interval over seeds.

    Args:
        arms: the arms in the order of the table.
        results: arm, seed and final metrics of each finished trial.
        primary: the metric that a narrow table keeps.
        wide: whether to print all metrics, however wide.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm, _, metrics in results:
        for name in SCORES:
            if final_metric(name) in metrics:
                values[arm][name].append(metrics[final_metric(name)])
    names = [name for name in SCORES if any(name in found for found in values.values())]
    rows = [["arm", *names, "n"]]
    for arm in arms:
        if arm in values:
            found = values[arm]
            count = max((len(v) for v in found.values()), default=0)
            rows.append([arm, *(str(estimate(found[name])) for name in names), str(count)])
    return text_table(rows, wide, keep=[0, len(names) + 1, *(1 + i for i, name in enumerate(names) if name == primary)])


def time_note(results: Sequence[tuple[str, int, Mapping[str, float]]]) -> str:
    """Return the mean training time of each arm, for a study that holds time fixed.

    Args:
        results: arm, seed and final metrics of each finished trial.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for arm, _, metrics in results:
        if SECONDS in metrics:
            seconds[arm].append(metrics[SECONDS])
    listed = ", ".join(f"{arm} {sum(values) / len(values):.0f} s" for arm, values in seconds.items())
    return f"The study holds time; the arms trained for {listed}."
