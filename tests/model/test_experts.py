"""Test expert choice against a simple loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.model import DiT, DiTConfig
from microdit.model.config import ExpertsConfig, MixerConfig
from microdit.model.layers.moe import ExpertChoice


def experts(num: int, capacity: float, width: int = 6, hidden: int = 10, seed: int = 0) -> ExpertChoice:
    layer = ExpertChoice(width, hidden, num, capacity)
    for name, parameter in layer.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(seed, name))
    return layer


def by_loop(layer: ExpertChoice, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for image in range(len(x)):
        gates = (x[image] @ layer.gate.weight.T).softmax(-1)  # (L, E)
        for expert in range(gates.shape[1]):
            ranked = gates[:, expert].argsort(descending=True)[: layer.taken(x.shape[1])]
            for token in ranked.tolist():
                output = F.gelu(x[image, token] @ layer.w1[expert]) @ layer.w2[expert]
                out[image, token] += gates[token, expert] * output
    return out


@settings(max_examples=40)
@given(
    num=st.integers(2, 5),  # of one expert all gates are 1: a tie
    share=st.floats(0.1, 1),
    tokens=st.integers(1, 12),
    batch=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_output_equals_that_of_a_plain_loop(num, share, tokens, batch, seed):
    layer = experts(num, share * num, seed=seed)
    x = torch.randn(batch, tokens, 6, generator=generator(seed, "x"))
    torch.testing.assert_close(layer(x), by_loop(layer, x), rtol=1e-4, atol=1e-4)


def test_gradients_equal_those_of_a_plain_loop():
    layer = experts(3, 1.5)
    x = torch.randn(2, 8, 6, generator=generator(0, "x"), requires_grad=True)
    weight = torch.randn(2, 8, 6, generator=generator(0, "weight"))
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((layer(x) * weight).sum(), inputs)
    theirs = torch.autograd.grad((by_loop(layer, x) * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_experts_choose_tokens_per_image():
    layer = experts(4, 2.0)
    x = torch.randn(3, 10, 6, generator=generator(0, "x"))
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_each_expert_takes_int_of_capacity_tokens_over_experts():
    assert experts(8, 2.0).taken(64) == 16
    assert experts(8, 2.0).taken(9) == 2
    assert experts(8, 1.0).taken(3) == 1  # never none


def test_a_token_that_no_expert_takes_gives_zero():
    layer = experts(2, 0.25)
    x = torch.randn(1, 8, 6, generator=generator(0, "x"))
    assert (layer(x).abs().sum(-1) == 0).sum() >= 8 - 2


def test_experts_are_in_the_same_blocks_as_in_the_released_models():
    config = DiTConfig(width=64, depth=6, mixer=MixerConfig(depth=4), experts=ExpertsConfig(4, 2.0, every_n=2))
    net = DiT(config, seed=None)
    assert [isinstance(block.mlp, ExpertChoice) for block in net.blocks] == [False, True, False, True, False, False]
    assert [isinstance(block.mlp, ExpertChoice) for block in net.mixer.blocks] == [False, True, False, True]


def test_every_n_zero_means_dense_blocks():
    net = DiT(DiTConfig(width=64, depth=4, experts=ExpertsConfig(every_n=0)), seed=None)
    assert not any(isinstance(module, ExpertChoice) for module in net.modules())


@pytest.mark.parametrize(
    ("values", "key"),
    [((0, 1.0, 2), "num"), ((4, 5.0, 2), "capacity"), ((4, 0.0, 2), "capacity"), ((4, 1.0, -1), "every_n")],
)
def test_impossible_experts_are_rejected(values, key):
    with pytest.raises(ConfigError, match=rf"'model\.experts\.{key}'"):
        ExpertsConfig(*values)
