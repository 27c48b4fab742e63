"""Samplers of the probability-flow ODE and its stochastic variant (Karras et al., arXiv 2206.00364, algorithm 2).

They know only `model(x, sigma)`: guidance and captions are wrapped around the denoiser beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microdit.config_io import InfiniteFloat
from microdit.diffusion.edm import Denoiser
from microdit.errors import ConfigError
from microdit.limits import check_limits
from microdit.model.captions import Captions, beside_null, parts
from microdit.model.mask_plan import keep_none

Model = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W) float32, sigma (B,)) -> denoised (B, C, H, W)


@dataclass(frozen=True)
class ChurnConfig:
    """Noise added back between steps (algorithm 2); `amount` (S_churn) 0 keeps the sampler deterministic."""

    amount: float = 0.0
    sigma_min: float = 0.0  # S_tmin
    sigma_max: InfiniteFloat = 1e9  # S_tmax
    noise: float = 1.0  # S_noise

    def __post_init__(self) -> None:
        check_limits("sampler.churn", self, amount=1e6, sigma_min=1e12, sigma_max=math.inf, noise=1e6)


@dataclass(frozen=True)
class GuidanceInterval:
    """Noise levels at which guidance applies: sigma_low < sigma <= sigma_high; by default all of them.

    Elsewhere the conditional model runs alone (Kynkäänniemi et al., arXiv 2404.07724, section 3).
    """

    sigma_low: float = 0.0
    sigma_high: InfiniteFloat | None = None  # null: no upper end

    def __post_init__(self) -> None:
        if not self.sigma_low >= 0:
            raise ConfigError(f"'sampler.guidance_interval.sigma_low' is {self.sigma_low}; it must be at least 0")
        if self.sigma_high is not None and not self.sigma_high > self.sigma_low:
            raise ConfigError(
                f"'sampler.guidance_interval.sigma_high' is {self.sigma_high}; it must be above 'sigma_low' "
                f"({self.sigma_low}), or null for no upper end"
            )

    @property
    def everywhere(self) -> bool:
        """Whether no level is left out."""
        return self.sigma_low == 0 and self.sigma_high is None

    def contains(self, sigma: Tensor) -> Tensor:
        """Which of the levels (B,) lie inside; (B,) bool. The ends are rounded as the levels are."""
        above = sigma > self.sigma_low
        return above if self.sigma_high is None else above & (sigma <= self.sigma_high)


EVERYWHERE = GuidanceInterval()
GuidedBy = Literal["caption", "path_drop"]  # what the weaker prediction goes without


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn; `guidance` 1 asks the conditional model alone."""

    type: Literal["heun", "euler"] = "heun"
    steps: int = 18
    guidance: float = 1.0
    guidance_by: GuidedBy = "caption"
    guidance_interval: GuidanceInterval = EVERYWHERE
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: ChurnConfig = ChurnConfig()

    def __post_init__(self) -> None:
        check_limits("sampler", self, steps=10**5, guidance=1e6, sigma_min=1e12, sigma_max=1e12, rho=1e6)
        if self.steps < 1:
            raise ConfigError(f"'sampler.steps' is {self.steps}; it must be at least 1")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"'sampler.sigma_min' ({self.sigma_min}) must lie between 0 and 'sampler.sigma_max' ({self.sigma_max})"
            )
        if self.rho <= 0:
            raise ConfigError(f"'sampler.rho' is {self.rho}; it must be above 0")
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


def guided(
    denoiser: Denoiser,
    y: Captions,
    guidance: float,
    interval: GuidanceInterval = EVERYWHERE,
    by: GuidedBy = "caption",
) -> Model:
    """A model of (x, sigma) for captions `y` (B, S, Y) under classifier-free guidance (arXiv 2207.12598, equation 6).

    The null caption is all zeros, as in training's caption dropout. Where no level of the batch lies in `interval`, the
    conditional prediction is made alone. `by` path_drop makes the weaker prediction without the middle blocks, too
    (SPRINT's path-drop guidance, arXiv 2510.21986), which spares most of its cost.
    """
    if guidance == 1:
        return lambda x, sigma: denoiser(x, sigma, y)
    pair = _by_path_drop(denoiser, y) if by == "path_drop" else _by_caption(denoiser, y)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        inside = interval.contains(sigma)
        if not interval.everywhere and not inside.any():  # in this order: any() waits for the device
            return denoiser(x, sigma, y)
        conditional, null = pair(x, sigma)
        return torch.where(inside.view(-1, 1, 1, 1), null + guidance * (conditional - null), conditional)

    return model


Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, sigma) -> what the caption gives, and the weaker one


def _by_caption(denoiser: Denoiser, y: Captions) -> Pair:
    both = beside_null(y)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:  # one batch of 2B serves both
        conditional, null = denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return conditional, null

    return pair


def _by_path_drop(denoiser: Denoiser, y: Captions) -> Pair:
    null_caption = beside_null(y)[len(y) :]
    around = keep_none(len(y), denoiser.net.config.side**2, parts(y)[0].device)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser(x, sigma, y), denoiser(x, sigma, null_caption, around)

    return pair


@torch.no_grad()
def sample(model: Model, noise: Tensor, config: SamplerConfig, generators: Sequence[torch.Generator] = ()) -> Tensor:
    """Integrates from `noise` (B, C, H, W), unit normal, to clean latents of the same shape, float32.

    The state is float64, so that only the network's precision limits the result. Heun's correction is left out of the
    last step, where sigma reaches 0. Churn alone needs `generators`, one for each image: what it adds to an image then
    doesn't depend on the others of its batch.
    """
    sigmas = sigma_steps(config).tolist()
    x = noise.double() * sigmas[0]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x, sigma = _churn(x, sigma, config, generators)
        slope = _slope(model, x, sigma)
        moved = x + (following - sigma) * slope
        if config.type == "heun" and following > 0:
            moved = x + (following - sigma) * (slope + _slope(model, moved, following)) / 2
        x = moved
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
