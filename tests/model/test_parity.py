"""Test that the released model's weights give its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from microdit.diffusion import EDM, SamplerConfig, guided, sample
from microdit.model import DiT, PatchMask, load_released, mask_from_keep, released_config

REFERENCE = Path(__file__).parent / "reference"
SIGMA_DATA = 0.9


@pytest.fixture(scope="module")
def net() -> DiT:
    config = released_config(json.loads((REFERENCE / "small.json").read_text()))
    return load_released(REFERENCE / "small.safetensors", config).eval()


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    arrays = {name: torch.from_numpy(value) for name, value in np.load(REFERENCE / "small_io.npz").items()}
    arrays["y"] = arrays["y"].squeeze(1)  # (B, 1, S, Y) there, (B, S, Y) here
    return arrays


@pytest.fixture(scope="module")
def plan(net: DiT, io: dict[str, torch.Tensor]) -> PatchMask:
    return mask_from_keep(io["ids_keep"], net.config.patches)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= relative * theirs.norm()
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


@torch.no_grad()
def test_all_patches(net, io):
    assert_close(net(io["x"], io["t"], io["y"]), io["out_unmasked"])


@torch.no_grad()
def test_guidance_against_the_null_caption(net, io):
    captioned, null = (net(io["x"], io["t"], y) for y in (io["y"], torch.zeros_like(io["y"])))
    assert_close(null + 3 * (captioned - null), io["out_cfg_3"])


@torch.no_grad()
def test_three_quarters_of_the_patches_dropped(net, io, plan):
    assert torch.equal(plan.mask, io["mask"])
    assert_close(net(io["x"], io["t"], io["y"], plan), io["out_masked_75"])


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_loss(net, io, plan, masked):
    denoiser = EDM(net, SIGMA_DATA)
    loss = denoiser.loss(io["x"], io["y"], io["loss_sigma"], io["loss_noise"], plan if masked else None)
    assert_close(loss.mean(), io["loss_masked_75" if masked else "loss_unmasked"])


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1, 3])
def test_eight_heun_steps(net, io, guidance):
    denoise = guided(EDM(net, SIGMA_DATA), io["y"], guidance)
    ours = sample(denoise, io["sampler_noise"], SamplerConfig(type="heun", steps=8))
    assert_close(ours, io[f"sampler_out_cfg{guidance}"], relative=1e-4)
