"""Test counted costs against PyTorch's own counter and the published figures of the released models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from microdit.model import PRESETS, DiT, DiTConfig, MaskingConfig, preset
from microdit.model.config import DecoderConfig, ExpertsConfig, FeedForwardConfig, MixerConfig, RouteConfig
from microdit.model.cost import built_counts, built_seen_tokens
from microdit.model.cost import network as cost
from microdit.model.cost.bundled import bundled_counts
from microdit.model.width_schedules import WidthConfig

SMALL = DiTConfig(width=64, depth=4, head_dim=16, mixer=MixerConfig(depth=2))
CONFIGS = {
    "plain": SMALL,
    "narrow mixer": dataclasses.replace(SMALL, mixer=MixerConfig(depth=2, width=32)),
    "no mixer": dataclasses.replace(SMALL, masking=MaskingConfig("naive", 0.5)),
    "unmasked": dataclasses.replace(SMALL, masking=MaskingConfig("none", 0.0)),
    "blocks of patches": dataclasses.replace(SMALL, masking=MaskingConfig("deferred", 0.75, 2)),
    "gelu and biases": dataclasses.replace(SMALL, ffn=FeedForwardConfig("gelu"), bias=True),
    "experts": dataclasses.replace(SMALL, experts=ExpertsConfig(4, 2.0, 2)),
    "MaskDiT": dataclasses.replace(
        SMALL, masking=MaskingConfig("maskdit", 0.75, decoder=DecoderConfig(3, 32, 16, 2.0))
    ),
    "routing": dataclasses.replace(SMALL, masking=MaskingConfig("routing", 0.5, route=RouteConfig(1, 2))),
    "sprint": dataclasses.replace(SMALL, masking=MaskingConfig("sprint", 0.75, route=RouteConfig(1, 1))),
    "layer-wise": dataclasses.replace(
        SMALL, attn_width=WidthConfig("layerwise", 0.5, 1.0), ffn_width=WidthConfig("layerwise", 0.5, 4.0, 16)
    ),
}
BATCH, TEXT = 2, 9


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("masked", [True, False])
def test_flops_equal_pytorchs_count(config, masked):
    # On the meta device attention is decomposed, so that its products are counted too.
    with torch.device("meta"):
        net = DiT(config, seed=None)
        inputs = torch.empty(BATCH, 4, 16, 16), torch.empty(BATCH), torch.empty(BATCH, TEXT, config.caption_channels)
    plan = net.mask_plan(BATCH, torch.Generator()) if masked else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs, plan.to("meta") if plan else None)
    ours = BATCH * cost.forward_flops(config, TEXT, masked)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.001)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("masked", [True, False])
def test_costs_counted_from_settings_are_those_of_the_built_network(config, masked):
    assert bundled_counts(config, TEXT, masked) == built_counts(config, TEXT, masked)
    for block in range(config.depth):
        assert cost.tokens_seen_by(config, block, masked) == built_seen_tokens(config, block, masked)


def test_no_mixer_costs_nothing():
    assert cost.flops_by_part(CONFIGS["no mixer"])["mixer"] == 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parts_sum_to_the_whole_network(config):
    net = DiT(config)
    assert cost.parameters(config) == sum(parameter.numel() for parameter in net.parameters())
    assert cost.training_flops(config) == 3 * sum(cost.flops_by_part(config).values())


@pytest.mark.parametrize(
    ("name", "figures", "mixer", "active"),
    [
        ("MicroDiT_Tiny_2", {0.0: 20.97, 0.5: 13.35, 0.75: 9.70}, 5.49, 120e6),
        ("MicroDiT_XL_2", {0.0: 117.9, 0.5: 69.5, 0.75: 45.9}, 18.1, 712e6),
    ],
)
def test_costs_of_the_released_models_match_published_figures(name, figures, mixer, active):
    """The published multiply-adds omit the caption embedding; ours count it (77 tokens) separately."""
    config = preset(name)
    for ratio, giga in figures.items():
        masked = dataclasses.replace(config, masking=MaskingConfig("deferred", ratio))
        parts = cost.flops_by_part(masked, text_tokens=77)
        assert sum(parts.values()) / 2e9 == pytest.approx(giga, rel=0.04)
        assert (sum(parts.values()) - parts["caption_block"]) / 2e9 == pytest.approx(giga, rel=0.01)
    assert cost.flops_by_part(config)["mixer"] / 2e9 == pytest.approx(mixer, rel=0.01)
    assert cost.active_parameters(config) == pytest.approx(active, rel=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_for_32_by_32_latents_and_2_by_2_patches(name):
    config = preset(name)
    assert config.patches == 256
    assert config.caption_channels == 1024


def test_dense_presets_are_all_active():
    assert cost.active_parameters(preset("DiT-Tiny/2")) == cost.parameters(preset("DiT-Tiny/2"))


def test_masking_saves_only_in_backbone_and_head():
    full = dataclasses.replace(SMALL, masking=MaskingConfig("deferred", 0.0))
    masked = dataclasses.replace(SMALL, masking=MaskingConfig("deferred", 0.75))
    before, after = cost.flops_by_part(full), cost.flops_by_part(masked)
    assert {part for part in before if after[part] < before[part]} == {"backbone", "head"}
    assert cost.forward_flops(masked, masked=False) == cost.forward_flops(full)
