"""Estimate a study: measured time on this machine, and time and price on an accelerator.

Only training steps are counted. Units are seconds, FLOPs and USD unless a name says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Annotated

from microdit.common.errors import ConfigError, nearest
from microdit.common.files.paths import EXPERIMENTS
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import parse, read_yaml
from microdit.config.schema import Config
from microdit.pipeline.cost import training_flops
from sweeps import planning
from sweeps.planning.throughput_cache import speed_settings
from sweeps.planning.trials import Trial

ACCELERATORS = EXPERIMENTS / "accelerators.yaml"


@dataclass(frozen=True)
class Accelerator:
    """A rented device: its name, peak and price."""

    name: str
    tflops: Annotated[float, Range(above=0)]  # dense bf16 peak, TFLOP/s
    usd_per_hour: Annotated[float, Range(0, 1e9)]

    def __post_init__(self) -> None:
        check_settings("", self)


@dataclass(frozen=True)
class EstimateOptions:
    """Options of an estimate."""

    accelerator: Accelerator
    utilisation: float = 0.35  # share of the peak that training reaches
    measure: bool = True


@dataclass(frozen=True)
class Estimate:
    """Training of the pending trials of one arm, one after the other."""

    arm: str
    count: int  # trials
    seconds_per_image: float | None  # on this machine; None if not measured
    seconds: float | None  # on this machine
    accelerator_seconds: float
    usd: float


def load_accelerator(name: str) -> Accelerator:
    """Return an entry of `experiments/accelerators.yaml`.

    Raises:
        ConfigError: if it is missing or invalid; the message has the nearest name.
    """
    entries = read_yaml(ACCELERATORS)
    if name not in entries:
        raise ConfigError(f"{ACCELERATORS}: no accelerator '{name}'; {nearest(name, entries)}")
    return parse(Accelerator, {"name": name, **entries[name]}, f"{ACCELERATORS}: {name}")


def accelerator_seconds(flops: float, accelerator: Accelerator, utilisation: float) -> float:
    """Return the seconds that a computation takes on one accelerator.

    Args:
        flops: FLOPs of the computation.
        accelerator: the device.
        utilisation: share of its peak that is reached, above 0 and at most 1.
    """
    return flops / (accelerator.tflops * 1e12 * utilisation)


def plan_estimates(trials: Sequence[Trial], done: Container[str], options: EstimateOptions) -> list[Estimate]:
    """Return one estimate per arm, in the order of `trials`.

    Args:
        trials: the trials of a study.
        done: keys of trials that need not run.
        options: if `measure` is set, each distinct network with a pending trial is measured once.

    Raises:
        ConfigError: if the GPU's memory is too small for a step of an arm, which the message names.
    """
    arms: dict[str, list[Trial]] = {}
    searched = len(trials) > 1 and not any(trial.params for trial in trials)  # trials of a search are alike
    for trial in trials:
        arms.setdefault("(all)" if searched else trial.arm, []).append(trial)
    known: dict[str, float | None] = {}
    return [_estimate(arm, [t for t in own if t.key not in done], options, known) for arm, own in arms.items()]


def _estimate(arm: str, trials: Sequence[Trial], options: EstimateOptions, known: dict[str, float | None]) -> Estimate:
    if not trials:
        return Estimate(arm, 0, None, 0.0, 0.0, 0.0)
    try:
        speed = _speed(trials[0].config, known) if options.measure else None
    except ConfigError as error:
        raise ConfigError(f"arm '{arm}': {error}") from None
    images = sum(trial.config.training.steps * trial.config.training.batch_size for trial in trials)
    here = None if speed is None else speed * images
    flops = float(sum(training_flops(trial.config) for trial in trials))
    there = accelerator_seconds(flops, options.accelerator, options.utilisation)
    return Estimate(arm, len(trials), speed, here, there, there / 3600 * options.accelerator.usd_per_hour)


def total(rows: Sequence[Estimate]) -> Estimate:
    """Return the sum of all arms.

    The time on this machine is None if that of an arm is unknown.
    """
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Estimate(
        "total",
        sum(row.count for row in rows),
        None,
        sum(seconds) if len(seconds) == len(rows) else None,
        sum(row.accelerator_seconds for row in rows),
        sum(row.usd for row in rows),
    )


def _speed(config: Config, known: dict[str, float | None]) -> float | None:
    """Return seconds per image of `config`, measured if `known` has no network of the same cost."""
    key = json.dumps(speed_settings(config), sort_keys=True)
    if key not in known:
        known[key] = planning.measure_seconds_per_image(config)
    return known[key]
