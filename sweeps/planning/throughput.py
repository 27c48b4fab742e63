"""Measure how fast this machine trains a network, in a few seconds of training on noise."""

from __future__ import annotations

import dataclasses
import statistics
import time

import psutil
import torch

from microdit.common.rng import generator
from microdit.config.device import choose_device
from microdit.config.schema import Config
from microdit.diffusion import build_objective, draw_sigma
from microdit.pipeline.cost import image_flops, text_tokens, trained_parameters
from microdit.training.trainer import TrainingLoss, initial_state

MEASURE_SECONDS = 3.0  # per network
REPEATS = 5  # timed steps at the largest micro-batch
MAX_MICRO_BATCH = 32  # images of a measured micro-batch
TRAIN_BYTES = 24  # per parameter: weight, gradient, two moments, average, and one temporary copy, each in fp32


def measure_seconds_per_image(config: Config) -> float | None:
    """Return a training step's seconds per image, or None if memory is too small.

    Forward and backward pass are timed with a micro-batch that grows to `MAX_MICRO_BATCH` images (on a GPU, to the
    trial's own) while time allows. The weight update, which the whole batch shares, is timed separately. If one step
    would take too long, a single block is timed and scaled up by FLOPs and parameters. Precision, device and CPU
    threads are those of the trial; the input is noise, and torch.compile is not used.
    """
    device = choose_device(config)
    before = torch.get_num_threads()
    if device.type == "cpu":
        if TRAIN_BYTES * trained_parameters(config) > psutil.virtual_memory().available:
            return None
        torch.set_num_threads(config.training.threads)
    try:
        passes, update = _from_one_block(config, device)
        if 2 * passes + update > MEASURE_SECONDS:
            return passes + update / config.training.batch_size
        return _ThroughputProbe(config, device).seconds_per_image()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        torch.set_num_threads(before)


def _from_one_block(config: Config, device: torch.device) -> tuple[float, float]:
    """Return approximate seconds of one image's forward and backward pass, and of one update."""
    model = config.model
    mixer = dataclasses.replace(model.mixer, depth=min(model.mixer.depth, 1))
    shallow = dataclasses.replace(
        config,
        model=dataclasses.replace(model, depth=1, mixer=mixer),
        alignment=dataclasses.replace(config.alignment, block=None),
    )
    passes, update = _ThroughputProbe(shallow, device).one_image()
    flops = image_flops(config) / image_flops(shallow)
    return passes * flops, update * trained_parameters(config) / trained_parameters(shallow)


class _ThroughputProbe:
    """A network trained on noise and timed."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config, self._device = config, device
        self._state = initial_state(config, device)
        denoiser = build_objective(config.diffusion, self._state.net, config.diffusion.sigma_data or 0.5)
        self._objective = TrainingLoss(denoiser, self._state.alignment)
        self._tokens = text_tokens(config)
        self._step = 0

    def one_image(self) -> tuple[float, float]:
        """Return the seconds of one image's forward and backward pass, and of one update."""
        first = self._time(1)  # slow from allocations, and on a GPU from loading its kernels
        return self._time(1) if self._device.type == "cuda" or sum(first) < MEASURE_SECONDS / 6 else first

    def seconds_per_image(self) -> float:
        begin = time.perf_counter()
        batch, seconds = self._grow(begin)
        times: list[tuple[float, float]] = []
        while len(times) < REPEATS and time.perf_counter() - begin + sum(seconds) < MEASURE_SECONDS:
            times.append(self._time(batch))
        passes, update = (statistics.median(values) for values in zip(*(times or [seconds]), strict=True))
        return passes / batch + update / self._config.training.batch_size

    def _grow(self, begin: float) -> tuple[int, tuple[float, float]]:
        """Return the largest micro-batch that time and memory allow, and the times of its first step."""
        own = self._config.training.batch_size // self._config.training.accumulation
        limit = own if self._device.type == "cuda" else min(own, MAX_MICRO_BATCH)
        batch = min(2, limit)
        seconds = self._time(batch)
        while batch < limit:
            larger = min(4 * batch, limit)
            if time.perf_counter() - begin + 2 * (seconds[0] * larger / batch + seconds[1]) > MEASURE_SECONDS:
                break
            try:
                seconds = self._time(larger)
            except torch.cuda.OutOfMemoryError:
                break
            batch = larger
        return batch, seconds

    def _time(self, batch: int) -> tuple[float, float]:
        """Return the seconds of one forward and backward pass of `batch` images, and of one update."""
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
        target = torch.randn((batch, model.patches, self._state.alignment.features), generator=draw).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.training.precision == "bf16"):
            return self._objective(x, y, sigma, noise, target, plan)[0]

    def _update(self) -> None:
        settings, state = self._config.training, self._state
        torch.nn.utils.clip_grad_norm_(state.parameters(), settings.clip or float("inf"))
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if settings.ema.decay:
            state.ema.update(state.net)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
