"""Test learning rates, parameter groups and data order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.model import DiT, DiTConfig
from microdit.model.config import ExpertsConfig, MixerConfig
from microdit.training.config import EmaConfig, MuonConfig, OptimizerConfig, ScheduleConfig
from microdit.training.optim import optimizers as optim
from microdit.training.optim.averaged_weights import AveragedWeights
from microdit.training.optim.lr_schedule import learning_rate
from microdit.training.optim.muon import CpuMuon
from microdit.training.optim.optimizers import build_optimizer, parameter_groups


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


def test_groups_by_module_type_cover_every_parameter_once():
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


def test_a_parameter_in_two_modules_is_rejected():
    net = Net()
    net.twin = net.linear.weight  # type: ignore[assignment]
    with pytest.raises(AssertionError, match="claimed twice"):
        parameter_groups(net)


@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 3))
def test_every_epoch_has_every_image_once(count: int, batch: int, seed: int):
    order = BatchSampler(count, batch, seed)
    steps = -(-3 * count // batch)
    seen = np.concatenate([order(step) for step in range(steps)])[: 3 * count]
    for epoch in seen.reshape(3, count):
        assert sorted(epoch) == list(range(count))
    fresh = BatchSampler(count, batch, seed)
    assert np.array_equal(fresh(steps - 1), order(steps - 1))  # a function of the step alone


@pytest.mark.parametrize(("start", "steps", "first"), [(-10_000, 60_000, 50_000), (100, 500, 100), (-10_000, 60, 0)])
def test_ema_can_count_from_the_end(start: int, steps: int, first: int):
    assert EmaConfig(0.995, start).first_step(steps) == first


MUON = OptimizerConfig(type="muon", lr=1e-2, weight_decay=0.1, no_decay=("norms",))


def small_dit() -> DiT:
    """Return a network with all kinds of parameters: experts, a mixer of another width, biases."""
    experts = ExpertsConfig(num=2, every_n=2)
    mixer = MixerConfig(depth=2, width=16, head_dim=16)
    shape = {"input_size": 8, "width": 32, "depth": 3, "head_dim": 16, "caption_channels": 8}
    return DiT(DiTConfig(**shape, bias=True, experts=experts, mixer=mixer), seed=0)


def fill_gradients(net: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def held_by(optimizer: torch.optim.Optimizer, net: nn.Module, group: str) -> set[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {names[id(p)] for g in optimizer.param_groups if g["name"] == group for p in g["params"]}


def test_muon_updates_hidden_matrices_and_adamw_all_others():
    net = small_dit()
    optimizer = build_optimizer(net, MUON)
    hidden = held_by(optimizer, net, "hidden")
    inside = ("blocks.", "mixer.")
    assert hidden == {n for n, p in net.named_parameters() if n.startswith(inside) and p.ndim == 2}
    assert {"blocks.0.attn.qkv.weight", "blocks.0.adaLN_modulation.1.weight", "mixer.map_in.1.weight"} <= hidden
    assert "blocks.1.mlp.gate.weight" in hidden
    rest = held_by(optimizer, net, "matrices")
    assert {"final_layer.linear.weight", "y_embedder.fc1.weight", "caption_block.attn.qkv.weight"} <= rest
    assert {"blocks.1.mlp.w1", "mixer.blocks.1.mlp.w2"} <= rest  # experts
    assert held_by(optimizer, net, "embedders") == {"x_embedder.proj.weight"}
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"hidden": 0.1, "embedders": 0.1, "matrices": 0.1, "norms": 0.0, "biases": 0.1}


def test_a_hidden_update_is_orthogonal_with_the_root_mean_square_of_adamw():
    net = small_dit()
    optimizer = build_optimizer(net, dataclasses.replace(MUON, weight_decay=0.0, muon=MuonConfig(momentum=0.0)))
    fill_gradients(net, 0)
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.mlp.w3.weight"):
        weight = net.get_parameter(name)
        before, gradient = weight.detach().clone(), weight.grad.double()
        optimizer.step()
        update = (before - weight.detach()).double() / MUON.lr
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        sizes = torch.diagonal(left.T @ update @ right.T) / (0.2 * max(weight.shape) ** 0.5)
        assert 0.6 < sizes.min() <= sizes.max() < 1.3  # Newton-Schulz leaves singular values about 1
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_chained_parts_equal_separate_optimizers():
    ours, theirs = small_dit(), small_dit()
    together = build_optimizer(ours, MUON)
    hidden = held_by(together, ours, "hidden")
    norms = held_by(together, ours, "norms")
    parts = {"muon": [], "decayed": [], "norms": []}
    for name, parameter in theirs.named_parameters():
        parts["muon" if name in hidden else "norms" if name in norms else "decayed"].append(parameter)
    settings = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "adjust_lr_fn": "match_rms_adamw"}
    apart = [
        CpuMuon(parts["muon"], lr=1e-2, weight_decay=0.1, **settings),
        torch.optim.AdamW(parts["decayed"], lr=1e-2, weight_decay=0.1, eps=MUON.eps, fused=True),
        torch.optim.AdamW(parts["norms"], lr=1e-2, weight_decay=0.0, eps=MUON.eps, fused=True),
    ]
    for step, rate in enumerate((1e-2, 3e-3)):
        for net, optimizers in ((ours, [together]), (theirs, apart)):
            fill_gradients(net, step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_for_cpus_equals_torchs_except_for_precision(nesterov: bool):
    shapes = ((24, 64), (64, 24), (32, 32))
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.5, "nesterov": nesterov, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = CpuMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        draw = torch.Generator().manual_seed(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=draw)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step == 1:  # each resumes from the other's state
            first, second = (optimizer.state_dict() for optimizer in optimizers)
            optimizers[0].load_state_dict(second)
            optimizers[1].load_state_dict(first)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_a_stored_state_resumes_in_a_fresh_optimizer(tmp_path: Path):
    nets = [small_dit(), small_dit()]
    first, fresh = (build_optimizer(net, MUON) for net in nets)
    fill_gradients(nets[0], 0)
    first.step()
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    nets[1].load_state_dict(nets[0].state_dict())
    fresh.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for net, optimizer in zip(nets, (first, fresh), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3  # must reach both parts after loading too
        fill_gradients(net, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_adamw_equals_torchs():
    net = small_dit()
    assert type(build_optimizer(net, OptimizerConfig())) is torch.optim.AdamW
    assert (
        type(build_optimizer(net, OptimizerConfig(type="microdit.training.optim.optimizers.adamw")))
        is torch.optim.AdamW
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda net, config: torch.optim.SGD([net.linear.weight]), ["'optimizer.type' is 'mine'", "'embed.weight'"]),
        (lambda net, config: net, ["'optimizer.type' is 'mine'", "must make an Optimizer"]),
    ],
)
def test_invalid_and_incomplete_optimizers_are_rejected(
    build: Callable, words: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(optim.OPTIMIZERS._entries, "mine", build)
    with pytest.raises(ConfigError) as caught:
        build_optimizer(Net(), OptimizerConfig(type="mine"))
    assert all(word in str(caught.value) for word in words)


def test_errors_name_wrong_optimizer_settings(smoke_config: Config):
    def with_type(name: str) -> Config:
        return dataclasses.replace(smoke_config, optimizer=OptimizerConfig(type=name))

    with pytest.raises(ConfigError, match=r"'optimizer\.type' is 'moun'; did you mean 'muon'"):
        with_type("moun")
    with pytest.raises(ConfigError, match=r"list its module 'mine' in 'plugins'"):
        with_type("mine.Lion")
    with pytest.raises(ConfigError, match=r"optimizer\.muon\.momentum"):
        MuonConfig(momentum=1.0)
    with pytest.raises(ConfigError, match=r"optimizer\.muon\.ns_steps"):
        MuonConfig(ns_steps=0)


def test_the_average_of_weights_is_torchs_bit_for_bit(smoke_config: Config):
    net = DiT(smoke_config.model)
    ours, theirs = AveragedWeights(net, 0.9), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    random = torch.Generator().manual_seed(0)
    for count in range(1, 5):
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.detach().add_(torch.randn(tensor.shape, generator=random))
        ours.update(net)
        theirs.update_parameters(net)
        assert ours.updates == count
        for own, other in zip(
            (*ours.module.parameters(), *ours.module.buffers()),
            (*theirs.module.parameters(), *theirs.module.buffers()),
            strict=True,
        ):
            assert torch.equal(own, other)
