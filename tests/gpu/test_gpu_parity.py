"""Test outputs, gradients and samples on the device against the released code's and against fp32 on the CPU.

The released code's outputs are stored in tests/model/reference. Errors are relative, in the L2 norm.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import randomize
from torch import Tensor

from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.diffusion import EDM, GuidanceInterval, SamplerConfig, guided, sample
from microdit.diffusion.config import ChurnConfig
from microdit.model import DiT, PatchMask, load_released, mask_from_keep, released_config
from microdit.model.presets import preset

REFERENCE = Path(__file__).parents[1] / "model" / "reference"
SIGMA_DATA = 0.9
OUTPUT_ERROR = {"fp32": 2e-5, "tf32": 5e-3, "bf16": 5e-2}
GRADIENT_ERROR = {"fp32": 2e-4, "tf32": 5e-2, "bf16": 1.5e-1}
SAMPLE_ERROR = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
SAMPLERS = {
    "heun": SamplerConfig(type="heun", steps=6),
    "euler": SamplerConfig(type="euler", steps=6),
    "churn": SamplerConfig(type="heun", steps=6, churn=ChurnConfig(amount=20.0, sigma_min=0.05, sigma_max=50.0)),
    "interval": SamplerConfig(type="heun", steps=6, guidance_interval=GuidanceInterval(0.1, 5.0)),
}


def error(ours: Tensor, theirs: Tensor) -> float:
    """Return the relative L2 error."""
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@pytest.fixture(scope="module")
def released() -> DiT:
    config = released_config(json.loads((REFERENCE / "small.json").read_text()))
    return load_released(REFERENCE / "small.safetensors", config).eval()


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    arrays = {name: torch.from_numpy(value) for name, value in np.load(REFERENCE / "small_io.npz").items()}
    return arrays | {"y": arrays["y"].squeeze(1)}


@torch.no_grad()
def test_outputs_and_losses_are_those_of_the_released_code(
    released: DiT, io: Mapping[str, Tensor], device: torch.device, precision: str, figure: Callable[..., None]
):
    net = copy.deepcopy(released).to(device)
    x, t, y, sigma, noise = (io[name].to(device) for name in ("x", "t", "y", "loss_sigma", "loss_noise"))
    plan = mask_from_keep(io["ids_keep"], net.config.patches).to(device)
    limit = OUTPUT_ERROR[precision]
    with autocast(device, precision):
        figure("unmasked output", error(net(x, t, y), io["out_unmasked"]), at_most=limit)
        figure("masked output", error(net(x, t, y, plan), io["out_masked_75"]), at_most=limit)
        loss = EDM(net, SIGMA_DATA).loss(x, y, sigma, noise, plan).mean()
    figure("masked loss", error(loss, io["loss_masked_75"]), at_most=limit)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1, 3])
def test_samples_are_those_of_the_released_code(
    released: DiT,
    io: Mapping[str, Tensor],
    guidance: int,
    device: torch.device,
    precision: str,
    figure: Callable[..., None],
):
    denoiser = EDM(copy.deepcopy(released).to(device), SIGMA_DATA)
    with autocast(device, precision):
        denoise = guided(denoiser, io["y"].to(device), guidance)
        ours = sample(denoise, io["sampler_noise"].to(device), SamplerConfig(type="heun", steps=8))
    figure("8 Heun steps", error(ours, io[f"sampler_out_cfg{guidance}"]), at_most=SAMPLE_ERROR[precision])


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_give_the_samples_of_the_cpu(
    released: DiT, io: Mapping[str, Tensor], sampler: str, device: torch.device, figure: Callable[..., None]
):
    config = SAMPLERS[sampler]

    def drawn(where: torch.device) -> Tensor:
        denoiser = EDM(copy.deepcopy(released).to(where), SIGMA_DATA)
        denoise = guided(denoiser, io["y"].to(where), 2.0, config.guidance_interval)
        noise = io["sampler_noise"].to(where)
        return sample(denoise, noise, config, [generator(0, "churn", i) for i in range(len(noise))])

    torch.set_float32_matmul_precision("highest")
    figure(f"6 steps, {sampler}", error(drawn(device), drawn(torch.device("cpu"))), at_most=SAMPLE_ERROR["fp32"])


def loss_and_gradients(net: DiT, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    """Return the loss of two images of 75% masked patches, and all gradients as one vector."""
    net = copy.deepcopy(net).to(device)
    config, draw = net.config, generator(0, "parity")
    image = (2, config.in_channels, config.input_size, config.input_size)
    x, noise = (torch.randn(image, generator=draw).to(device) for _ in range(2))
    y = torch.randn(2, 16, config.caption_channels, generator=draw).to(device)
    sigma = torch.tensor([0.3, 2.0]).to(device)
    plan: Any = net.mask_plan(2, draw)
    assert isinstance(plan, PatchMask)
    with autocast(device, precision):
        loss = EDM(net, SIGMA_DATA).loss(x, y, sigma, noise, plan.to(device)).mean()
    return loss, torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, [*net.parameters()])])


@pytest.fixture(scope="module")
def reference() -> Callable[[str, Config], tuple[DiT, Tensor, Tensor]]:
    """Return a function that builds a network and its loss and gradients in fp32 on the CPU, once."""
    known: dict[str, tuple[DiT, Tensor, Tensor]] = {}

    def find(name: str, small: Config) -> tuple[DiT, Tensor, Tensor]:
        if name not in known:
            masking = replace(small.model.masking, method="deferred", ratio=0.75)
            model = replace(small.model, masking=masking) if name == "small" else preset(name)
            net = randomize(DiT(model, seed=None))
            known[name] = (net, *loss_and_gradients(net, torch.device("cpu"), "fp32"))
        return known[name]

    return find


@pytest.mark.parametrize("name", ["small", "DiT-Tiny/2", "MicroDiT_Tiny_2"])
def test_loss_and_gradients_are_those_of_the_cpu(
    name: str,
    smoke_config: Config,
    reference: Callable[[str, Config], tuple[DiT, Tensor, Tensor]],
    device: torch.device,
    precision: str,
    figure: Callable[..., None],
):
    if device.type == "cpu" and name != "small":
        pytest.skip("takes a GPU")
    net, wanted_loss, wanted = reference(name, smoke_config)
    loss, gradients = loss_and_gradients(net, device, precision)
    figure(f"{name}: loss", error(loss, wanted_loss), at_most=OUTPUT_ERROR[precision])
    figure(f"{name}: gradients", error(gradients, wanted), at_most=GRADIENT_ERROR[precision])
