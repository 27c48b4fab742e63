"""Test training runs against the update's formulas in float64: learning rate, clipping, AdamW and EMA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import EDM
from microdit.model import DiT
from microdit.pipeline.inputs import build_accelerator, build_components
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run_identity
from microdit.training.checkpoint import TrainState
from microdit.training.config import EmaConfig, OptimizerConfig, ScheduleConfig
from microdit.training.feed.batches import draw_batch
from microdit.training.trainer import train

STEPS = 5
PEAK, WARMUP, FINAL = 0.02, 2, 0.25
# Warmup reaches the peak at its last step; the cosine then falls from the peak to FINAL x peak at the last step.
RATES = [0.01, 0.02, 0.02, 0.02 * (0.25 + 0.75 * (1 + math.cos(math.pi / 2)) / 2), 0.005]
BETA1, BETA2, DECAY = 0.8, 0.95, 0.1
EPS = 1e-3  # about the size of the clipped gradients, so that their length changes the update
CLIP = 0.05  # below the norm of every step's gradient

Arrays = dict[str, np.ndarray]


class Log(NullLogger):
    """Record each step's readings."""

    def __init__(self) -> None:
        self.readings: dict[int, dict[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.readings.setdefault(step, {}).update(values)


def recipe(base: Config, out: Path, **training: object) -> Config:
    optimizer = OptimizerConfig("adamw", PEAK, DECAY, BETA1, BETA2, EPS, no_decay=("norms", "biases"))
    settings = replace(base.training, **{"steps": STEPS, "clip": CLIP, "log_every": 1, "val_every": 0} | training)
    schedule = ScheduleConfig("cosine", WARMUP, FINAL)
    return replace(base, output_dir=str(out), optimizer=optimizer, schedule=schedule, training=settings)


def trained(config: Config) -> tuple[TrainState, dict[int, dict[str, float]]]:
    components, log = build_components(config), Log()
    state = train(
        config, components.train, components.val, run_identity(config, components), log, build_accelerator(config)
    )
    return state, log.readings


def arrays(net: nn.Module) -> Arrays:
    return {name: parameter.detach().double().numpy().copy() for name, parameter in net.named_parameters()}


def gradients(net: DiT, config: Config, step: int) -> Arrays:
    """Return autograd's gradients of the loss at `step`; the update is computed from them by hand."""
    data = build_components(config).train
    order = BatchSampler(len(data), config.training.batch_size, config.seed)
    x, y, sigma, noise, _, plan = draw_batch(config, step, data, order, net).arguments()
    net.zero_grad()
    EDM(net, data.sigma_data).loss(x, y, sigma, noise, plan).mean().backward()
    return {name: p.grad.double().numpy() for name, p in net.named_parameters() if p.grad is not None}


def decayed(name: str, value: np.ndarray) -> bool:
    """Return whether weight decay applies; it excludes all vectors here: norms and biases."""
    return value.ndim > 1


def by_formula(config: Config) -> tuple[list[Arrays], list[float]]:
    """Return weights after each step, and the norm of each step's gradient before clipping."""
    net = DiT(config.model, seed=config.seed)
    weights = arrays(net)
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    history, norms = [], []
    for step in range(config.training.steps):
        found = gradients(net, config, step)
        norms.append(math.sqrt(sum(float((g**2).sum()) for g in found.values())))
        scale = min(1.0, config.training.clip / norms[-1]) if config.training.clip else 1.0
        for name, gradient in found.items():
            g, rate = gradient * scale, RATES[step]
            if decayed(name, weights[name]):
                weights[name] = weights[name] * (1 - rate * DECAY)
            first[name] = BETA1 * first[name] + (1 - BETA1) * g
            second[name] = BETA2 * second[name] + (1 - BETA2) * g**2
            mean, square = first[name] / (1 - BETA1 ** (step + 1)), second[name] / (1 - BETA2 ** (step + 1))
            weights[name] = weights[name] - rate * mean / (np.sqrt(square) + EPS)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
        history.append({name: value.copy() for name, value in weights.items()})
    return history, norms


def assert_equal(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(("clip", "accumulation"), [(CLIP, 1), (0.0, 1), (CLIP, 2)])
def test_steps_follow_the_formulas(smoke_config: Config, tmp_path: Path, clip: float, accumulation: int):
    config = recipe(smoke_config, tmp_path, clip=clip, accumulation=accumulation)
    state, readings = trained(config)
    history, norms = by_formula(config)
    assert min(norms) > 2 * CLIP
    assert_equal(arrays(state.net), history[-1])
    assert [readings[step + 1]["lr"] for step in range(STEPS)] == pytest.approx(RATES)
    assert [readings[step + 1]["grad_norm"] for step in range(STEPS)] == pytest.approx(norms, rel=1e-3)


def test_one_step_follows_the_formula(smoke_config: Config, tmp_path: Path):
    """At the first step, the learning rate is half the peak (two warmup steps), with clipping and decay."""
    config = recipe(smoke_config, tmp_path, steps=2, checkpoint_every=1, keep_checkpoints=5)
    trained(config)
    stored = load_file(tmp_path / "checkpoints" / "step_00000001" / "weights.safetensors")
    history, _ = by_formula(config)
    assert_equal({name: stored[name].astype(np.float64) for name in history[0]}, history[0])


@pytest.mark.parametrize(("decay", "start"), [(0.9, 0), (0.9, 2), (0.9, -3), (0.25, 1)])
def test_the_average_follows_the_formula(smoke_config: Config, tmp_path: Path, decay: float, start: int):
    """The average starts as the weights after its first step: step `start`, or that many before the end."""
    config = recipe(smoke_config, tmp_path, ema=EmaConfig(decay, start))
    state, _ = trained(config)
    history, _ = by_formula(config)
    own = history[start if start >= 0 else STEPS + start :]
    expected = own[0]
    for weights in own[1:]:
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in weights.items()}
    assert_equal(arrays(state.averaged), expected)
    apart = max(float(np.abs(expected[name] - value).max()) for name, value in history[-1].items())
    assert apart > 1e-3  # the average is not the last weights


def test_without_an_average_the_last_weights_are_evaluated(smoke_config: Config, tmp_path: Path):
    state, _ = trained(recipe(smoke_config, tmp_path, ema=EmaConfig(0.0)))
    assert state.averaged is state.net
