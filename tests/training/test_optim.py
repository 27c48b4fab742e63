"""Learning rates, parameter groups and data order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from microdit.data.encoded import DataOrder
from microdit.training.config import EmaConfig, OptimizerConfig, ScheduleConfig
from microdit.training.optim import build_optimizer, learning_rate, parameter_groups


@given(
    steps=st.integers(2, 500),
    warmup=st.integers(0, 100),
    final=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "constant"]),
)
def test_schedule_laws(steps: int, warmup: int, final: float, kind: str):
    warmup = min(warmup, steps)
    config = ScheduleConfig(kind, warmup, final)
    rates = [learning_rate(step, steps, 2.0, config) for step in range(steps)]
    assert all(0 <= rate <= 2.0 + 1e-12 for rate in rates)
    assert all(a < b for a, b in zip(rates[: warmup - 1], rates[1:warmup], strict=False))
    after = rates[warmup:]
    assert all(a >= b - 1e-12 for a, b in zip(after[:-1], after[1:], strict=True))
    if kind == "cosine" and len(after) >= 2:
        assert after[0] == pytest.approx(2.0)
        assert after[-1] == pytest.approx(2.0 * final)


def test_released_cosine_ends_at_a_third():
    config = ScheduleConfig("cosine", 2500, 0.33)
    assert learning_rate(2499, 250_000, 2.4e-4, config) == pytest.approx(2.4e-4)
    assert learning_rate(249_999, 250_000, 2.4e-4, config) == pytest.approx(0.33 * 2.4e-4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, 8, 2)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.experts = nn.Parameter(torch.zeros(2, 8, 8))


def test_groups_go_by_module_type_and_cover_everything_once():
    net = Net()
    groups = parameter_groups(net)
    assert {name: len(members) for name, members in groups.items()} == {
        "embedders": 1,
        "matrices": 2,
        "norms": 2,
        "biases": 2,
    }
    optimizer = build_optimizer(net, OptimizerConfig(weight_decay=0.1, no_decay=("norms", "biases")))
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"embedders": 0.1, "matrices": 0.1, "norms": 0.0, "biases": 0.0}


def test_a_parameter_held_twice_is_noticed():
    net = Net()
    net.twin = net.linear.weight  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="claimed twice"):
        parameter_groups(net)


@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
def test_every_epoch_sees_every_image_once(count: int, batch: int, seed: int):
    order = DataOrder(count, batch, seed)
    steps = -(-3 * count // batch)
    seen = np.concatenate([order(step) for step in range(steps)])[: 3 * count]
    for epoch in seen.reshape(3, count):
        assert sorted(epoch) == list(range(count))
    fresh = DataOrder(count, batch, seed)
    assert np.array_equal(fresh(steps - 1), order(steps - 1))  # a function of the step alone


@pytest.mark.parametrize(("start", "steps", "first"), [(-10_000, 60_000, 50_000), (100, 500, 100), (-10_000, 60, 0)])
def test_ema_may_count_from_the_end(start: int, steps: int, first: int):
    assert EmaConfig(0.995, start).first_step(steps) == first
