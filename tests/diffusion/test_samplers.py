"""Samplers against problems whose solution is known, and the laws of EDM's preconditioning."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from microdit.diffusion import DiffusionConfig, SamplerConfig, draw_sigma, quantile_sigma, sample, sigma_steps
from microdit.diffusion.samplers import ChurnConfig
from microdit.errors import ConfigError
from microdit.rng import generator

MEAN, STD = 0.7, 0.5


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser of data ~ N(MEAN, STD^2): the posterior mean."""
    s = sigma.view(-1, 1, 1, 1)
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def exact_flow(noise: Tensor, sigma_max: float) -> Tensor:
    """The ODE's solution at sigma 0 for that denoiser, in closed form."""
    return MEAN + (noise.double() * sigma_max - MEAN) * STD / (STD**2 + sigma_max**2) ** 0.5


NOISE = torch.randn(2, 4, 8, 8, generator=generator(0, "test"))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_method(kind: str, order: int):
    errors = []
    for steps in (32, 64, 128):
        config = SamplerConfig(kind, steps)
        errors.append((sample(gaussian_denoiser, NOISE, config) - exact_flow(NOISE, 80.0)).abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.3)


def test_churn_keeps_the_distribution_and_needs_a_generator():
    config = SamplerConfig("heun", 40, churn=ChurnConfig(amount=20.0))
    noise = torch.randn(64, 4, 8, 8, generator=generator(1, "test"))
    out = sample(gaussian_denoiser, noise, config, generator(0, "churn"))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.06)
    plain = sample(gaussian_denoiser, noise, SamplerConfig("heun", 40))
    assert (out - plain).abs().mean() > 0.1  # it really is another path
    assert torch.equal(out, sample(gaussian_denoiser, noise, config, generator(0, "churn")))
    with pytest.raises(ConfigError, match=r"sampler\.churn\.amount"):
        sample(gaussian_denoiser, noise, config)


@given(steps=st.integers(2, 100), low=st.floats(1e-3, 0.1), high=st.floats(1.0, 200.0), rho=st.floats(1.0, 10.0))
def test_noise_levels_fall_from_max_to_min_to_zero(steps: int, low: float, high: float, rho: float):
    sigmas = sigma_steps(SamplerConfig(steps=steps, sigma_min=low, sigma_max=high, rho=rho))
    assert len(sigmas) == steps + 1
    assert sigmas[0].item() == pytest.approx(high)
    assert sigmas[-2].item() == pytest.approx(low)
    assert sigmas[-1].item() == 0
    assert (sigmas.diff() < 0).all()


def test_training_noise_is_log_normal():
    config = DiffusionConfig(p_mean=-0.6, p_std=1.2)
    drawn = draw_sigma(20_000, config, generator(0, "sigma")).log()
    assert drawn.mean().item() == pytest.approx(-0.6, abs=0.03)
    assert drawn.std().item() == pytest.approx(1.2, abs=0.03)
    levels = quantile_sigma(1001, config)
    assert (levels.diff() > 0).all()
    assert levels[500].log().item() == pytest.approx(-0.6, abs=1e-5)
    assert levels.log().std().item() == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sampler.steps", {"steps": 0}),
        ("sampler.sigma_min", {"sigma_min": 100.0}),
        ("sampler.rho", {"rho": 0.0}),
    ],
)
def test_impossible_settings_are_named(key: str, changes: dict):
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(SamplerConfig(), **changes)
