"""Test the network: shapes, information of dropped patches, and initial outputs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import inputs, randomize

from microdit.common.rng import generator
from microdit.model import DiT, DiTConfig, MaskingConfig, mask_from_keep
from microdit.model.config import ExpertsConfig, FeedForwardConfig, MixerConfig
from microdit.model.width_schedules import WidthConfig

BASE = DiTConfig(
    input_size=8, width=64, depth=4, head_dim=16, caption_channels=12, mixer=MixerConfig(depth=2, width=32)
)
METHODS = {
    "none": MaskingConfig("none", 0.0),
    "naive": MaskingConfig("naive", 0.75),
    "deferred": MaskingConfig("deferred", 0.75),
}


def build(method: str, trained: bool = True, **changes) -> DiT:
    """Return a small network; `trained` replaces initial zeros, so that every part affects the output."""
    net = DiT(dataclasses.replace(BASE, masking=METHODS[method], **changes), seed=3)
    return (randomize(net) if trained else net).eval()


def patches(x: torch.Tensor) -> torch.Tensor:
    """Map (B, C, 8, 8) -> (B, 16, 4 C), patch by patch."""
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_output_has_the_shape_of_the_latents(method):
    net = build(method)
    x, t, y = inputs(2)
    plan = net.mask_plan(2, generator(0, "mask"))
    assert (plan is None) == (method == "none")
    assert net(x, t, y, plan).shape == x.shape


@pytest.mark.parametrize("method", ["naive", "deferred"])
@torch.no_grad()
def test_only_dropped_patches_are_zero(method):
    net = build(method)
    plan = net.mask_plan(2, generator(0, "mask"))
    out = patches(net(*inputs(2), plan))
    assert torch.equal(out.abs().amax(-1) == 0, plan.mask == 1)


@pytest.mark.parametrize(("method", "informed"), [("naive", False), ("deferred", True)])
@torch.no_grad()
def test_only_deferred_masking_passes_information_from_dropped_patches(method, informed):
    net = build(method)
    x, t, y = inputs(2)
    plan = mask_from_keep(torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), 16)  # the upper row of patches
    changed = x.clone()
    changed[:, :, 2:] += 1.0
    same = torch.equal(net(x, t, y, plan), net(changed, t, y, plan))
    assert same != informed


@torch.no_grad()
def test_a_plan_that_keeps_all_patches_equals_no_plan():
    net = build("deferred")
    everything = mask_from_keep(torch.arange(16).expand(2, -1), 16)
    torch.testing.assert_close(net(*inputs(2), everything), net(*inputs(2)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_order_of_kept_patches_does_not_matter():
    net = build("naive")
    kept = torch.tensor([[3, 7, 9], [0, 14, 5]])
    ours = net(*inputs(2), mask_from_keep(kept, 16))
    torch.testing.assert_close(ours, net(*inputs(2), mask_from_keep(kept.flip(1), 16)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["x", "t", "y"])
@torch.no_grad()
def test_every_input_affects_the_output(part):
    net = build("none")
    values = dict(zip("xty", inputs(2), strict=True))
    before = net(*values.values())
    values[part] = values[part] + 0.5
    assert not torch.allclose(before, net(*values.values()), atol=1e-4)


@torch.no_grad()
def test_images_of_a_batch_do_not_affect_each_other():
    net = build("deferred", experts=ExpertsConfig(4, 2.0, 2))
    x, t, y = inputs(3)
    plan = net.mask_plan(3, generator(0, "mask"))
    whole, alone = net(x, t, y, plan), net(x[1:2], t[1:2], y[1:2], plan[1:2])
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"experts": ExpertsConfig(4, 2.0, 2)}, {"bias": True}, {"qk_norm": False}])
def test_every_parameter_gets_a_gradient(changes):
    net = build("deferred", **changes)
    plan = net.mask_plan(2, generator(0, "mask"))
    net(*inputs(2), plan).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_a_fresh_network_predicts_zero_and_its_blocks_ignore_the_condition():
    net = build("deferred", trained=False)
    assert net(*inputs(2)).abs().max() == 0
    x, _, y = torch.randn(2, 16, 64), None, torch.randn(2, 5, 64)
    block = net.blocks[0]
    assert torch.equal(block(x, torch.zeros(2, 64), y), block(x, torch.ones(2, 64), y))


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build("deferred", trained=False)
    torch.manual_seed(2)
    again = build("deferred", trained=False)
    other = DiT(first.config, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.x_embedder.proj.weight, other.x_embedder.proj.weight)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("naive", {}),
        ("deferred", {}),
        ("none", {"ffn": FeedForwardConfig("gelu")}),
        ("none", {"experts": ExpertsConfig(4, 2.0, 2)}),
        ("none", {"attn_width": WidthConfig("layerwise", 0.5, 1.0)}),
    ],
)
def test_arms_that_share_a_seed_start_equal_wherever_their_shapes_agree(method, changes):
    plain = dict(build("none", trained=False).named_parameters())
    arm = dict(build(method, trained=False, **changes).named_parameters())
    shared = [name for name in plain if name in arm and plain[name].shape == arm[name].shape]
    assert len(shared) > len(plain) // 2
    assert all(torch.equal(plain[name], arm[name]) for name in shared)


def test_a_finer_grid_spans_the_positions_of_the_coarse_one():
    coarse = DiT(BASE).pos_embed.view(4, 4, 64)
    fine = DiT(dataclasses.replace(BASE, input_size=16, pos_interp_scale=2.0)).pos_embed.view(8, 8, 64)
    torch.testing.assert_close(fine[::2, ::2], coarse)


def test_captions_of_any_length_are_accepted():
    net = build("deferred")
    x, t, _ = inputs(2)
    assert net(x, t, torch.randn(2, 1, 12)).shape == net(x, t, torch.randn(2, 77, 12)).shape == x.shape


@pytest.mark.parametrize("experts", [0, 2])
def test_the_whole_network_traces_into_one_graph(experts):
    net = build("deferred", experts=ExpertsConfig(4, 2.0, experts))
    plan = net.mask_plan(2, generator(0, "mask"))
    traced = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(traced(*inputs(2), plan), net(*inputs(2), plan))


def test_half_precision_training_stays_close():
    net = build("deferred", experts=ExpertsConfig(4, 2.0, 2))
    plan = net.mask_plan(2, generator(0, "mask"))
    full = net(*inputs(2), plan)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(*inputs(2), plan)
    half.float().square().sum().backward()
    assert (half.float() - full).norm() < 0.1 * full.norm()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
