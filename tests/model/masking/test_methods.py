"""Test MaskDiT, token routing and sparse-dense fusion against small independent implementations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import inputs, randomize

from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.diffusion import EDM, guided
from microdit.model import DiT, DiTConfig, MaskingConfig, PatchMask
from microdit.model.config import DecoderConfig, MixerConfig, RouteConfig
from microdit.model.layers.embeddings import sincos_positions
from microdit.model.validate import check_model

BASE = DiTConfig(input_size=8, width=64, depth=4, head_dim=16, caption_channels=12, mixer=MixerConfig(depth=0))
SIGMA_DATA = 0.7


def build(masking: MaskingConfig, **changes) -> DiT:
    """Return a small network with all weights random, so that every part affects the output."""
    return randomize(DiT(dataclasses.replace(BASE, masking=masking, **changes), seed=3)).eval()


def patch(image: torch.Tensor, number: int) -> torch.Tensor:
    """Return the values of one patch of (C, 8, 8)."""
    row, column = divmod(number, 4)
    return image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]


def one_by_one(net: DiT, plan: PatchMask | None, middle, given=None) -> torch.Tensor:
    """Run the network image by image; `middle(tokens (T, D), kept numbers, c, y)` returns the head's tokens (T, D)."""
    x, t, y = given or inputs(3)
    images = []
    for i in range(len(x)):
        c, caption = net.condition(t[i : i + 1], y[i : i + 1])
        tokens = (net.x_embedder(x[i : i + 1]) + net.pos_embed)[0]
        kept = range(16) if plan is None else plan.ids_keep[i].tolist()
        values = net.final_layer(middle(tokens, list(kept), c, caption).unsqueeze(0), c)[0]
        image = torch.zeros(4, 8, 8)
        for number in range(16):
            patch(image, number)[:] = values[number].view(2, 2, 4).permute(2, 0, 1)
        images.append(image)
    return torch.stack(images)


def run(blocks, tokens: torch.Tensor, c: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    tokens = tokens.unsqueeze(0)
    for block in blocks:
        tokens = block(tokens, c, y)
    return tokens[0]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("width", [None, 32])
@torch.no_grad()
def test_maskdit_encodes_the_visible_and_decodes_all(masked, width):
    net = build(MaskingConfig("maskdit", 0.75, decoder=DecoderConfig(2, width, 16)))
    plan = net.mask_plan(3, generator(0, "mask")) if masked else None
    own = net.masking
    places = sincos_positions(width or 64, 4, 1.0)[0]

    def middle(tokens, kept, c, y):
        seen = own.enter(run(net.blocks, tokens[kept], c, y).unsqueeze(0), c)[0]
        full = torch.stack([seen[kept.index(n)] if n in kept else own.mask_token[0, 0] for n in range(16)])
        return run(own.blocks, full + places, c, own.map_caption(y))

    torch.testing.assert_close(net(*inputs(3), plan), one_by_one(net, plan, middle), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_maskdits_loss_denoises_visible_and_reconstructs_masked_patches():
    net = build(MaskingConfig("maskdit", 0.5, reconstruction=0.3))
    plan = net.mask_plan(3, generator(0, "mask"))
    x, _, y = inputs(3)
    sigma, noise = torch.tensor([0.1, 0.8, 3.0]), torch.randn(x.shape, generator=generator(0, "noise"))
    denoiser = EDM(net, SIGMA_DATA)
    noisy = x + sigma.view(-1, 1, 1, 1) * noise
    denoised = denoiser(noisy, sigma, y, plan)
    for i, loss in enumerate(denoiser.loss(x, y, sigma, noise, plan)):
        weight = (sigma[i] ** 2 + SIGMA_DATA**2) / (sigma[i] * SIGMA_DATA) ** 2
        visible, masked = [], []
        for number in range(16):
            out, clean, target = (patch(image[i], number) for image in (denoised, x, noisy))
            if number in plan.ids_keep[i]:
                visible.append(weight * (out - clean).square().mean())
            else:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                masked.append((out - target).square().mean())
        expected = torch.stack(visible).mean() + 0.3 * torch.stack(masked).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_routed_patches_skip_the_middle_blocks_only(masked):
    net = build(MaskingConfig("routing", 0.75, route=RouteConfig(1, 2)))
    plan = net.mask_plan(3, generator(0, "mask")) if masked else None

    def middle(tokens, kept, c, y):
        tokens = run(net.blocks[:1], tokens, c, y)
        tokens[kept] = run(net.blocks[1:2], tokens[kept], c, y)
        return run(net.blocks[2:], tokens, c, y)

    torch.testing.assert_close(net(*inputs(3), plan), one_by_one(net, plan, middle), rtol=1e-4, atol=1e-5)


def fused(net: DiT, deep: bool = True):
    """Run SPRINT's backbone: two blocks, the middle one if `deep`, and one block."""

    def middle(tokens, kept, c, y):
        shallow = run(net.blocks[:2], tokens, c, y)
        deep_path = net.masking.mask_token[0].repeat(16, 1)
        if deep:
            deep_path[kept] = run(net.blocks[2:3], shallow[kept], c, y)
        both = torch.cat([shallow, deep_path], 1) @ net.masking.fuse.weight.T + net.masking.fuse.bias
        return run(net.blocks[3:], both, c, y)

    return middle


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_sparse_deep_features_are_fused_with_dense_shallow_ones(masked):
    net = build(MaskingConfig("sprint", 0.75, route=RouteConfig(2, 1)))
    plan = net.mask_plan(3, generator(0, "mask"), masked)
    assert (plan is not None) == masked
    torch.testing.assert_close(net(*inputs(3), plan), one_by_one(net, plan, fused(net)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_path_drop_trains_some_images_without_the_deep_path(masked):
    net = build(MaskingConfig("sprint", 0.75, route=RouteConfig(2, 1, path_drop=0.5)))
    plan = net.mask_plan(3, generator(1, "mask"), masked)
    assert 0 < plan.shallow.sum() < 3  # some of each kind
    whole, around = (one_by_one(net, plan, fused(net, deep)) for deep in (True, False))
    expected = torch.where(plan.shallow.view(-1, 1, 1, 1), around, whole)
    torch.testing.assert_close(net(*inputs(3), plan), expected, rtol=1e-4, atol=1e-5)
    part = plan[1:3].to("cpu")  # as micro-batches and processes take theirs
    assert part.shallow.tolist() == plan.shallow[1:3].tolist()
    plain = build(MaskingConfig("sprint", 0.75, route=RouteConfig(2, 1))).mask_plan(3, generator(1, "mask"))
    assert not masked or torch.equal(plan.ids_keep, plain.ids_keep)  # the same patches as in an arm without it
    many = net.mask_plan(4000, generator(1, "mask"), masked).shallow
    assert many.float().mean().item() == pytest.approx(0.5, abs=0.03)


@torch.no_grad()
def test_path_drop_guidance_omits_caption_and_middle_blocks():
    net = build(MaskingConfig("sprint", 0.75, route=RouteConfig(2, 1, path_drop=0.1)))
    x, _, y = inputs(3)
    sigma = torch.tensor([0.1, 0.8, 3.0])
    denoiser = EDM(net, SIGMA_DATA)
    called: list[str] = []
    for name, block in (("outer", net.blocks[0]), ("middle", net.blocks[2])):
        block.register_forward_hook(lambda *_, name=name: called.append(name))
    out = guided(denoiser, y, 3.0, by="path_drop")(x, sigma)
    assert called == ["outer", "middle", "outer"]
    t, variance = sigma.log() / 4, (sigma**2 + SIGMA_DATA**2).view(-1, 1, 1, 1)
    scaled = x / variance.sqrt()
    expected = []
    for caption, deep in ((y, True), (torch.zeros_like(y), False)):
        output = one_by_one(net, None, fused(net, deep), (scaled, t, caption))
        expected.append(SIGMA_DATA**2 / variance * x + sigma.view(-1, 1, 1, 1) * SIGMA_DATA / variance.sqrt() * output)
    torch.testing.assert_close(out, expected[1] + 3 * (expected[0] - expected[1]), rtol=1e-4, atol=1e-4)
    assert (out - guided(denoiser, y, 3.0)(x, sigma)).abs().max() > 0.01


def test_path_drop_is_rejected_for_methods_without_it():
    with pytest.raises(ConfigError, match=r"route\.path_drop' is 0\.1, but 'model\.masking\.method' routing .* sprint"):
        build(MaskingConfig("routing", 0.75, route=RouteConfig(1, 1, path_drop=0.1)))
    with pytest.raises(ConfigError, match=r"route\.path_drop' is 1"):
        RouteConfig(1, 1, path_drop=1)


@pytest.mark.parametrize("method", ["routing", "sprint"])
@torch.no_grad()
def test_methods_that_lose_no_patch_have_a_loss_over_all_patches(method):
    net = build(MaskingConfig(method, 0.75, route=RouteConfig(1, 1)))
    plan = net.mask_plan(3, generator(0, "mask"))
    x, _, y = inputs(3)
    sigma, noise = torch.tensor([0.1, 0.8, 3.0]), torch.randn(x.shape, generator=generator(0, "noise"))
    denoiser = EDM(net, SIGMA_DATA)
    out = denoiser(x + sigma.view(-1, 1, 1, 1) * noise, sigma, y, plan)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    expected = weight * (out - x).square().mean((1, 2, 3))
    torch.testing.assert_close(denoiser.loss(x, y, sigma, noise, plan), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["naive", "deferred", "routing"])
@torch.no_grad()
def test_at_ratio_0_a_method_is_the_unmasked_network(method):
    plain, masked = (build(MaskingConfig(name, 0.0, route=RouteConfig(1, 1))) for name in ("none", method))
    assert masked.mask_plan(3, generator(0, "mask")) is None
    assert torch.equal(masked(*inputs(3), None), plain(*inputs(3), None))


@torch.no_grad()
def test_unmasked_maskdit_has_a_decoder_but_no_reconstruction_loss():
    masking = MaskingConfig("maskdit", 0.0, decoder=DecoderConfig(2))
    net, plain = build(masking), build(MaskingConfig("none", 0.0))
    extra = set(dict(net.named_parameters())) - set(dict(plain.named_parameters()))
    assert {name.split(".")[0] for name in extra} == {"masking"}
    x, _, y = inputs(3)
    sigma, noise = torch.full((3,), 0.8), torch.randn(x.shape, generator=generator(0, "noise"))
    without = build(dataclasses.replace(masking, reconstruction=0.0))
    losses = [EDM(one, SIGMA_DATA).loss(x, y, sigma, noise) for one in (net, without)]
    assert torch.equal(*losses)


def test_every_part_of_a_method_gets_a_gradient():
    for method in ("maskdit", "sprint"):
        net = build(MaskingConfig(method, 0.75, route=RouteConfig(1, 1), decoder=DecoderConfig(1, 32)))
        x, _, y = inputs(3)
        loss = EDM(net, SIGMA_DATA).loss(x, y, torch.full((3,), 0.8), x, net.mask_plan(3, generator(0, "mask")))
        loss.sum().backward()
        still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []


@pytest.mark.parametrize(
    ("masking", "words"),
    [
        ({"method": "maskdi"}, ["'model.masking.method' is 'maskdi'", "'maskdit'"]),
        ({"method": "routing", "route": RouteConfig(3, 2)}, ["3 blocks before and 2 after", "'model.depth' (4)"]),
        (
            {"method": "maskdit", "decoder": DecoderConfig(width=40)},
            ["'model.masking.decoder.width' is 40", "heads of 16"],
        ),
    ],
)
def test_impossible_methods_are_rejected(masking, words):
    with pytest.raises(ConfigError) as caught:
        check_model(dataclasses.replace(BASE, masking=MaskingConfig(**masking)))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "call", [lambda: DecoderConfig(depth=-1), lambda: RouteConfig(before=-1), lambda: MaskingConfig(reconstruction=-1)]
)
def test_negative_settings_are_rejected(call):
    with pytest.raises(ConfigError, match="must be at least 0"):
        call()
