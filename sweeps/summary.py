"""The tables that a sweep prints at its ends: what is planned, and what came out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from scipy.special import stdtrit

from microdit.budget import training_flops
from microdit.config import Config
from microdit.model import cost
from sweeps.study import Study
from sweeps.trials import Trial

SHOWN = ("clip_fd", "fd", "kid", "clip_score", "class_accuracy", "val_loss")


def plan_table(study: Study, trials: Sequence[Trial], done: Container[str]) -> str:
    """One row an arm: seeds, parameters and FLOPs; `done` holds the keys of finished trials."""
    arms: dict[str, Config] = {trial.arm: trial.config for trial in trials}
    rows = [["arm", "seeds", "done", "params", "active", "GFLOPs/image", "training PFLOPs"]]
    for arm in study.arms:
        config, own = arms[arm], [trial for trial in trials if trial.arm == arm]
        finished = sum(trial.key in done for trial in own)
        rows.append(
            [
                arm,
                " ".join(str(trial.seed) for trial in own),
                f"{finished}/{len(own)}",
                f"{cost.parameters(config.model):,}",
                f"{cost.active_parameters(config.model):,}",
                f"{cost.forward_flops(config.model) / 1e9:.3f}",
                digits(training_flops(config) / 1e15),
            ]
        )
    total = sum(training_flops(trial.config) for trial in trials if trial.key not in done)
    count = sum(trial.key in done for trial in trials)
    return align(rows) + f"\n\n{len(trials)} trials, {count} done; {digits(total / 1e15)} PFLOPs to go"


def result_table(arms: Sequence[str], results: Sequence[tuple[str, int, Mapping[str, float]]]) -> str:
    """One row an arm: mean and 95% Student interval over seeds of each final metric."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm, _, metrics in results:
        for name in SHOWN:
            if f"final/{name}" in metrics:
                values[arm][name].append(metrics[f"final/{name}"])
    names = [name for name in SHOWN if any(name in found for found in values.values())]
    rows = [["arm", *names, "n"]]
    for arm in arms:
        if arm in values:
            found = values[arm]
            count = max((len(v) for v in found.values()), default=0)
            rows.append([arm, *(interval(found[name]) for name in names), str(count)])
    return align(rows)


def time_note(results: Sequence[tuple[str, int, Mapping[str, float]]]) -> str:
    """What arms that are to share their training time really took."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for arm, _, metrics in results:
        if "cost/seconds" in metrics:
            seconds[arm].append(metrics["cost/seconds"])
    listed = ", ".join(f"{arm} {sum(values) / len(values):.0f} s" for arm, values in seconds.items())
    return f"The study holds time; the arms trained for {listed}."


def interval(values: Sequence[float]) -> str:
    """Mean and half-width of the 95% Student interval; one value says n=1."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{digits(mean)} (n=1)"
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    if not math.isfinite(half) or half == 0:
        return f"{digits(mean)} ± {half:.2g}"
    places = max(0, 1 - math.floor(math.log10(half)))
    return f"{round(mean, places) + 0.0:.{places}f} ± {half:.{places}f}"  # + 0.0: never -0


def digits(value: float, count: int = 4) -> str:
    """`count` significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e5:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first to the left, others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
