"""Measure how fast this machine trains a network: run the trainer's own loop on random data for a few seconds.

b images of a step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import psutil
import torch

from microdit.common.errors import ConfigError
from microdit.config.device import choose_device
from microdit.config.identity import ALGORITHM
from microdit.config.schema import Config
from microdit.pipeline.cost import image_flops, trained_parameters
from microdit.pipeline.inputs import build_accelerator
from microdit.training.checkpoint import Identity
from microdit.training.trainer import train
from sweeps.planning.random_data import RandomData

MEASURE_SECONDS = 3.0  # per network, besides its first steps
INTERVALS = 20  # at most so many timed log intervals
GPU_INTERVAL = 5  # steps between two waits for a GPU
SLOW_FLOPS_PER_SECOND = 30e9  # of a CPU thread; a rough guess decides what is measured
TRAIN_BYTES = 24  # per parameter: weight, gradient, two moments, average, and one temporary copy, each in fp32
ENDLESS_STEPS = 10**6


@dataclass(frozen=True)
class StepTimes:
    """Seconds of training steps."""

    first: float  # until the first steps have ended: the network is built and compiled
    step: float  # median of later steps


def measure_seconds_per_image(config: Config) -> float | None:
    """Return the seconds per image of a training step, measured by `measure_steps`.

    Args:
        config: the settings of a trial.

    Returns:
        Seconds; None if the CPU's memory is too small.

    Raises:
        ConfigError: if the GPU's memory is too small for a step.
    """
    times = measure_steps(config)
    return None if times is None else times.step / config.training.batch_size


def measure_steps(config: Config) -> StepTimes | None:
    """Measure the steps of a trial's own training loop.

    Feed, precision, compilation, accumulation, device and CPU threads are the trial's. On a CPU, a step that takes too
    long is estimated from steps of fewer images, or from those of a single block.

    Args:
        config: the settings of a trial.

    Returns:
        The times; None if the CPU's memory is too small.

    Raises:
        ConfigError: if the GPU's memory is too small for a step.
    """
    if choose_device(config).type == "cuda":
        return time_steps(config)
    if TRAIN_BYTES * trained_parameters(config) > psutil.virtual_memory().available:
        return None
    before = torch.get_num_threads()
    try:
        return _on_cpu(config)
    finally:
        torch.set_num_threads(before)


def _on_cpu(config: Config) -> StepTimes:
    """Return the seconds of a step, extrapolated from smaller steps or networks if it takes too long."""
    settings = config.training
    image = image_flops(config) / SLOW_FLOPS_PER_SECOND / settings.threads
    if image * settings.batch_size < MEASURE_SECONDS:
        return time_steps(config)
    slow = image > MEASURE_SECONDS / 8
    measured = of_one_block(config) if slow else config
    sizes = (2, 4) if slow else (2, max(int(MEASURE_SECONDS / 4 / image), 4))
    small, large = (time_steps(_with_batch(measured, size)).step for size in sizes)
    passes = max((large - small) / (sizes[1] - sizes[0]), large / sizes[1] / 4)  # an update takes most of it at worst
    update = max(large - sizes[1] * passes, 0.0)
    step = settings.batch_size * passes * image_flops(config) / image_flops(measured)
    step += update * trained_parameters(config) / trained_parameters(measured)
    return StepTimes(step, step)


def _with_batch(config: Config, size: int) -> Config:
    training = replace(config.training, batch_size=size, accumulation=1, compile=False)
    return replace(config, training=training)


def of_one_block(config: Config) -> Config:
    """Return `config` with a single block, which is in the route if there is one.

    Args:
        config: the settings of a trial.
    """
    model = config.model
    mixer = replace(model.mixer, depth=min(model.mixer.depth, 1))
    route = replace(model.masking.route, before=0, after=0)
    masking = replace(model.masking, route=route)
    alignment = replace(config.alignment, block=None)
    return replace(config, model=replace(model, depth=1, mixer=mixer, masking=masking), alignment=alignment)


def time_steps(config: Config, seconds: float = MEASURE_SECONDS) -> StepTimes:
    """Run the training loop on random data and time its steps.

    Args:
        config: the settings.
        seconds: how long steps are timed after the first ones; at least one log interval is timed.

    Returns:
        The times.

    Raises:
        ConfigError: if a GPU's memory is too small.
    """
    accelerator = build_accelerator(config)
    every = GPU_INTERVAL if accelerator.device.type == "cuda" else 1
    data: Any = RandomData(config, accelerator.device)
    timer = _Timer(seconds)
    with tempfile.TemporaryDirectory() as folder:
        endless = _endless(config, folder, every)
        try:
            train(endless, data, data, Identity("", ALGORITHM, ""), timer, accelerator)
        except _TimedEnough:
            pass
        except torch.cuda.OutOfMemoryError:
            raise ConfigError(_too_large(config)) from None
    first, *later = (after - before for before, after in pairwise(timer.ends))
    return StepTimes(first, statistics.median(later) / every)


def _too_large(config: Config) -> str:
    settings = config.training
    return (
        f"a step on {settings.batch_size // settings.micro_batches} images needs more memory than this GPU has; raise "
        f"'training.accumulation' ({settings.accumulation})"
    )


def _endless(config: Config, folder: str, log_every: int) -> Config:
    """Return the settings of a run that does nothing but masked training steps."""
    training = replace(
        config.training,
        steps=ENDLESS_STEPS,
        init=None,
        init_optimizer=False,
        unmasked_tail=0.0,
        ema=replace(config.training.ema, start_step=0),
        log_every=log_every,
        val_every=0,
        sample_every=0,
        checkpoint_every=0,
    )
    return replace(config, output_dir=folder, training=training)


class _TimedEnough(Exception):
    """End the training loop."""


class _Timer:
    """Note when log intervals end; the device has finished its work then.

    Args:
        seconds: how long to time after the first interval.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.ends = [time.perf_counter()]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note the end of an interval, and stop the loop if there are enough."""
        self.ends.append(time.perf_counter())
        timed = len(self.ends) - 2
        if timed >= INTERVALS or (timed and self.ends[-1] - self.ends[1] >= self._seconds):
            raise _TimedEnough

    def flush(self) -> None:
        """Do nothing: no checkpoint is written."""
