"""Test widths of attention and feed-forwards: end values, monotonic growth, whole heads, equal cost."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.model import DiT, DiTConfig
from microdit.model.config import FeedForwardConfig
from microdit.model.cost import network as cost
from microdit.model.layers.feed_forward import GELU, SwiGLU
from microdit.model.width_schedules import WidthConfig, attention_width, hidden_width, layerwise, round_up

RATIO = st.floats(0.05, 8)
WIDTH = st.integers(1, 64).map(lambda n: n * 32)


@given(RATIO, RATIO, st.integers(2, 40))
def test_layerwise_is_linear_between_both_ends(start, end, depth):
    ratios = layerwise(start, end, depth)
    assert len(ratios) == depth
    assert ratios[0] == start
    assert ratios[-1] == pytest.approx(end)
    steps = [later - earlier for earlier, later in itertools.pairwise(ratios)]
    assert max(steps) - min(steps) == pytest.approx(0, abs=1e-9)


@given(RATIO, st.integers(1, 40))
def test_constant_is_constant(ratio, depth):
    assert WidthConfig("constant", ratio, ratio).ratios(depth) == [ratio] * depth


@given(WIDTH, st.floats(0.001, 8), st.sampled_from([None, 32, 64, 128]))
def test_attention_is_whole_heads_and_never_collapses(width, ratio, multiple_of):
    result = attention_width(width, ratio, 32, multiple_of)
    assert result >= 32
    assert result % 32 == 0
    assert ratio == 1 or 0 <= result - int(width * ratio) <= (multiple_of or 32)


@given(WIDTH, st.sampled_from([None, 32, 64, 256]))
def test_ratio_one_gives_the_model_width(width, multiple_of):
    assert attention_width(width, 1.0, 32, multiple_of) == width


@given(WIDTH, st.lists(st.floats(0.001, 8), min_size=2, max_size=10), st.sampled_from([2, 3]))
def test_larger_ratios_never_give_narrower_layers(width, ratios, matrices):
    hidden = [hidden_width(width, ratio, matrices, None) for ratio in sorted(ratios)]
    assert hidden == sorted(hidden)
    assert hidden[0] > 0


@given(st.floats(0, 1e5), st.integers(1, 512))
def test_rounding_up_is_the_least_multiple(value, multiple_of):
    result = round_up(value, multiple_of)
    assert result % multiple_of == 0
    assert result >= int(value)
    assert result - multiple_of < int(value) or result == multiple_of


@given(WIDTH, st.floats(0.5, 8), st.sampled_from([1, 8, 32, 256]))
def test_swiglu_and_gelu_have_equal_parameters_within_rounding(width, ratio, multiple_of):
    sizes = []
    for cls in (SwiGLU, GELU):
        hidden = hidden_width(width, ratio, cls.matrices, multiple_of)
        sizes.append(cls.matrices * width * hidden)
    assert abs(sizes[0] - sizes[1]) <= 3 * width * multiple_of


@pytest.mark.parametrize("width", [64, 96, 512])
def test_the_number_of_matrices_matches_the_module(width):
    for cls in (SwiGLU, GELU):
        hidden = hidden_width(width, 4.0, cls.matrices, 8)
        net = cls(width, hidden, bias=False)
        assert sum(parameter.numel() for parameter in net.parameters()) == cls.matrices * width * hidden


def test_gelu_and_swiglu_networks_have_equal_cost():
    swiglu = DiTConfig(width=128, depth=4, ffn_width=WidthConfig(start=4.0, end=4.0))
    gelu = dataclasses.replace(swiglu, ffn=FeedForwardConfig("gelu"))
    assert cost.parameters(gelu) == pytest.approx(cost.parameters(swiglu), rel=0.01)
    assert cost.training_flops(gelu) == pytest.approx(cost.training_flops(swiglu), rel=0.01)


def test_the_network_is_built_at_the_scheduled_widths():
    config = DiTConfig(
        width=128,
        depth=4,
        attn_width=WidthConfig("layerwise", 0.25, 1.0),
        ffn_width=WidthConfig("layerwise", 1.0, 4.0, 16),
        ffn=FeedForwardConfig("gelu"),
    )
    net = DiT(config)
    assert [block.attn.proj.in_features for block in net.blocks] == [32, 64, 96, 128]
    assert [block.mlp.w1.out_features for block in net.blocks] == [128, 256, 384, 512]
    assert all(block.cross_attn.proj.in_features == 128 for block in net.blocks)
