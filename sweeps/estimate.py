"""What a study would take: time on this machine, measured; time and money on an accelerator, from its peak.

Training steps only. Units are seconds, FLOPs and USD unless a name says otherwise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from microdit.budget import text_tokens, training_flops
from microdit.components import choose_device
from microdit.config import Config
from microdit.config_io import parse, read_yaml
from microdit.diffusion import Denoiser, draw_sigma
from microdit.errors import ConfigError, nearest
from microdit.model import cost
from microdit.rng import generator
from microdit.training.loop import initial_state
from sweeps.compose import EXPERIMENTS
from sweeps.trials import Trial

ACCELERATORS = EXPERIMENTS / "accelerators.yaml"
BUDGET = 3.0  # seconds of measuring a network
REPEATS = 5  # timed steps at the largest micro-batch
LARGEST = 32  # images of a measured micro-batch
TRAIN_BYTES = 24  # a parameter: weight, gradient, two moments, average, and one passing copy, each in fp32


@dataclass(frozen=True)
class Accelerator:
    """A device that can be rented."""

    name: str
    tflops: float  # dense bf16 peak, TFLOP/s
    usd_per_hour: float

    def __post_init__(self) -> None:
        if not self.tflops > 0:
            raise ConfigError(f"'tflops' is {self.tflops}; it must be above 0")
        if not 0 <= self.usd_per_hour < float("inf"):
            raise ConfigError(f"'usd_per_hour' is {self.usd_per_hour}; it must be at least 0")


@dataclass(frozen=True)
class EstimateOptions:
    """How a plan is reckoned."""

    accelerator: Accelerator
    utilisation: float = 0.35  # share of the peak that training reaches
    measure: bool = True


@dataclass(frozen=True)
class Estimate:
    """Training of the trials of one arm that are still to run, one after the other."""

    arm: str
    count: int  # trials
    seconds_per_image: float | None  # on this machine; None where not measured
    seconds: float | None  # on this machine
    accelerator_seconds: float
    usd: float


def load_accelerator(name: str) -> Accelerator:
    """The entry of `experiments/accelerators.yaml`; raises ConfigError naming the file and the nearest valid name."""
    entries = read_yaml(ACCELERATORS)
    if name not in entries:
        raise ConfigError(f"{ACCELERATORS}: no accelerator '{name}'; {nearest(name, entries)}")
    return parse(Accelerator, {"name": name, **entries[name]}, f"{ACCELERATORS}: {name}")


def estimate_options(own: Mapping[str, Any]) -> EstimateOptions:
    """From the command line's words; raises ConfigError naming the word that is wrong."""
    accelerator = load_accelerator(str(own.get("accelerator", "h100")))
    utilisation = own.get("utilisation", EstimateOptions.utilisation)
    if not _is_number(utilisation) or not 0 < utilisation <= 1:
        raise ConfigError(f"utilisation={utilisation}: it must be a share of the peak, above 0 and at most 1")
    price = own.get("usd_per_hour", accelerator.usd_per_hour)
    if not _is_number(price) or not 0 <= price < float("inf"):
        raise ConfigError(f"usd_per_hour={price}: it must be a number of at least 0")
    measure = own.get("measure", True)
    if not isinstance(measure, bool):
        raise ConfigError(f"measure={measure}: it must be true or false")
    priced = Accelerator(accelerator.name, accelerator.tflops, float(price))
    return EstimateOptions(priced, float(utilisation), measure)


def accelerator_seconds(flops: float, accelerator: Accelerator, utilisation: float) -> float:
    """Seconds that `flops` FLOPs take on one accelerator at `utilisation` of its peak."""
    return flops / (accelerator.tflops * 1e12 * utilisation)


def plan_estimates(trials: Sequence[Trial], done: Container[str], options: EstimateOptions) -> list[Estimate]:
    """One row an arm, in the order of `trials`; `done` holds the keys of trials that need not run.

    Measures each distinct network once, where `options.measure` says so and a trial with it is still to run.
    """
    arms: dict[str, list[Trial]] = {}
    searched = len(trials) > 1 and not any(trial.params for trial in trials)  # the places of a search are all alike
    for trial in trials:
        arms.setdefault("(all)" if searched else trial.arm, []).append(trial)
    known: dict[object, float | None] = {}
    return [_estimate(arm, [t for t in own if t.key not in done], options, known) for arm, own in arms.items()]


def _estimate(
    arm: str, trials: Sequence[Trial], options: EstimateOptions, known: dict[object, float | None]
) -> Estimate:
    if not trials:
        return Estimate(arm, 0, None, 0.0, 0.0, 0.0)
    speed = _speed(trials[0].config, known) if options.measure else None
    images = sum(trial.config.training.steps * trial.config.training.batch_size for trial in trials)
    here = None if speed is None else speed * images
    flops = float(sum(training_flops(trial.config) for trial in trials))
    there = accelerator_seconds(flops, options.accelerator, options.utilisation)
    return Estimate(arm, len(trials), speed, here, there, there / 3600 * options.accelerator.usd_per_hour)


def total(rows: Sequence[Estimate]) -> Estimate:
    """The sum of all arms; time on this machine is None where an arm's is not known."""
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return Estimate(
        "total",
        sum(row.count for row in rows),
        None,
        sum(seconds) if len(seconds) == len(rows) else None,
        sum(row.accelerator_seconds for row in rows),
        sum(row.usd for row in rows),
    )


def _speed(config: Config, known: dict[object, float | None]) -> float | None:
    """Seconds per image of `config`, measured where `known` has no network of the same cost."""
    training = config.training
    where = (training.device, training.threads, training.precision)
    key = (config.model, text_tokens(config), training.batch_size, training.accumulation, *where)
    if key not in known:
        known[key] = measure_seconds_per_image(config)
    return known[key]


def measure_seconds_per_image(config: Config) -> float | None:
    """Seconds on this machine that a training step takes for each of its images; None where memory won't do.

    Forward and backward pass are timed at a micro-batch that grows to `LARGEST` images (on a GPU, to the trial's own)
    while time allows; the update of the weights, which the whole batch shares, is timed by itself. Runs as a trial
    does, in its precision, on its device and its CPU threads, but on noise and without torch.compile.
    """
    device = choose_device(config)
    before = torch.get_num_threads()
    if device.type == "cpu":
        if TRAIN_BYTES * cost.parameters(config.model) > psutil.virtual_memory().available:
            return None
        torch.set_num_threads(config.training.threads)
    try:
        return _Probe(config, device).seconds_per_image()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.set_num_threads(before)


class _Probe:
    """A network in training on noise, with a clock."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device = config, device
        self._state = initial_state(config, device)
        self._denoiser = Denoiser(self._state.net, config.diffusion.sigma_data or 0.5)
        self._tokens = text_tokens(config)
        self._step = 0

    def seconds_per_image(self) -> float:
        begin = time.perf_counter()
        batch, seconds = self._grow(begin)
        times: list[tuple[float, float]] = []
        while len(times) < REPEATS and time.perf_counter() - begin + sum(seconds) < BUDGET:
            times.append(self._time(batch))
        passes, update = (statistics.median(values) for values in zip(*(times or [seconds]), strict=True))
        return passes / batch + update / self._config.training.batch_size

    def _grow(self, begin: float) -> tuple[int, tuple[float, float]]:
        """The largest micro-batch that time and memory allow, and what its first step took."""
        own = self._config.training.batch_size // self._config.training.accumulation
        limit = own if self._device.type == "cuda" else min(own, LARGEST)
        batch = min(2, limit)
        seconds = self._time(batch)
        while batch < limit:
            larger = min(4 * batch, limit)
            if time.perf_counter() - begin + 2 * (seconds[0] * larger / batch + seconds[1]) > BUDGET:
                break
            try:
                seconds = self._time(larger)
            except torch.cuda.OutOfMemoryError:
                break
            batch = larger
        return batch, seconds

    def _time(self, batch: int) -> tuple[float, float]:
        """Seconds of one forward and backward pass of `batch` images, and of one update."""
        begin = self._now()
        self._loss(batch).backward()
        middle = self._now()
        self._update()
        return middle - begin, self._now() - middle

    def _loss(self, batch: int) -> torch.Tensor:
        model, device = self._config.model, self._device
        self._step += 1
        draw = generator(0, "measure", self._step)
        shape = (batch, model.in_channels, model.input_size, model.input_size)
        x, noise = torch.randn(shape, generator=draw).to(device), torch.randn(shape, generator=draw).to(device)
        y = torch.randn((batch, self._tokens, model.caption_channels), generator=draw).to(device)
        sigma = draw_sigma(batch, self._config.diffusion, draw).to(device)
        plan = self._state.net.mask_plan(batch, draw)
        plan = plan.to(device) if plan is not None else None
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.training.precision == "bf16"):
            return self._denoiser.loss(x, y, sigma, noise, plan).mean()

    def _update(self) -> None:
        settings, state = self._config.training, self._state
        torch.nn.utils.clip_grad_norm_(state.net.parameters(), settings.clip or float("inf"))
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if settings.ema.decay:
            state.ema.update_parameters(state.net)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
