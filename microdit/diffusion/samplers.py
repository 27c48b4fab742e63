"""Samplers of the probability-flow ODE and its stochastic variant (Karras et al., arXiv 2206.00364, algorithm 2).

They know only `model(x, sigma)`: guidance and captions are wrapped around the denoiser beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import InfiniteFloat
from microdit.diffusion.guidance import EVERYWHERE, GuidanceInterval, GuidedBy, Model

StepCallback = Callable[[int, int, Tensor], None]  # (step from 1, steps, latents (B, C, H, W) float64 after it)


@dataclass(frozen=True)
class ChurnConfig:
    """Noise added back between steps (algorithm 2); `amount` (S_churn) 0 keeps the sampler deterministic."""

    amount: Annotated[float, Range(-1e6, 1e6)] = 0.0
    sigma_min: Annotated[float, Range(-1e12, 1e12)] = 0.0  # S_tmin
    sigma_max: InfiniteFloat = 1e9  # S_tmax
    noise: Annotated[float, Range(-1e6, 1e6)] = 1.0  # S_noise

    def __post_init__(self) -> None:
        check_settings("sampler.churn", self)


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn; `guidance` 1 asks the conditional model alone."""

    type: Literal["heun", "euler"] = "heun"
    steps: Annotated[int, Range(1, 10**5)] = 18
    guidance: Annotated[float, Range(-1e6, 1e6)] = 1.0
    guidance_by: GuidedBy = "caption"
    guidance_interval: GuidanceInterval = EVERYWHERE
    sigma_min: Annotated[float, Range(above=0, most=1e12)] = 0.002
    sigma_max: Annotated[float, Range(above=0, most=1e12)] = 80.0
    rho: Annotated[float, Range(above=0, most=1e6)] = 7.0
    churn: ChurnConfig = ChurnConfig()

    def __post_init__(self) -> None:
        check_settings("sampler", self)
        if not self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"'sampler.sigma_min' ({self.sigma_min}) must be below 'sampler.sigma_max' ({self.sigma_max})"
            )
        low, high = self.guidance_interval.sigma_low, self.guidance_interval.sigma_high
        if low >= self.sigma_max or (high is not None and high < self.sigma_min):
            raise ConfigError(
                f"'sampler.guidance_interval' ({low} to {high}) has none of the sampler's noise levels, which lie "
                f"between {self.sigma_min} and {self.sigma_max}: guidance would never apply"
            )


def sigma_steps(config: SamplerConfig) -> Tensor:
    """Noise levels (steps + 1,), falling from sigma_max to sigma_min, then 0; equation 5, float64."""
    ramp = torch.linspace(0, 1, config.steps, dtype=torch.float64)
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return torch.cat([(high + ramp * (low - high)) ** config.rho, torch.zeros(1, dtype=torch.float64)])


@torch.no_grad()
def sample(
    model: Model,
    noise: Tensor,
    config: SamplerConfig,
    generators: Sequence[torch.Generator] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Integrates from `noise` (B, C, H, W), unit normal, to clean latents of the same shape, float32.

    The state is float64, so that only the network's precision limits the result. Heun's correction is left out of the
    last step, where sigma reaches 0. Churn alone needs `generators`, one for each image: what it adds to an image then
    doesn't depend on the others of its batch. `callback` is called after each step.
    """
    sigmas = sigma_steps(config).tolist()
    x = noise.double() * sigmas[0]
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True), 1):
        x, sigma = _churn(x, sigma, config, generators)
        slope = _slope(model, x, sigma)
        moved = x + (following - sigma) * slope
        if config.type == "heun" and following > 0:
            moved = x + (following - sigma) * (slope + _slope(model, moved, following)) / 2
        x = moved
        if callback is not None:
            callback(step, config.steps, x)
    return x.float()


def _slope(model: Model, x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma, equation 3 with sigma(t) = t."""
    levels = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
    return (x - model(x.float(), levels).double()) / sigma


def _churn(
    x: Tensor, sigma: float, config: SamplerConfig, generators: Sequence[torch.Generator]
) -> tuple[Tensor, float]:
    churn = config.churn
    if churn.amount <= 0 or not churn.sigma_min <= sigma <= churn.sigma_max:
        return x, sigma
    if len(generators) != len(x):
        raise ConfigError("'sampler.churn.amount' is above 0: a generator of each image is needed")
    raised = sigma * (1 + min(churn.amount / config.steps, 2**0.5 - 1))
    fresh = torch.stack([torch.randn(x.shape[1:], generator=each, dtype=torch.float64) for each in generators])
    return x + (raised**2 - sigma**2) ** 0.5 * churn.noise * fresh.to(x.device), raised
