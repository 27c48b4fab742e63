"""Integrate the probability-flow ODE and its stochastic variant.

See Karras et al., arXiv 2206.00364.

B batch, C latent channels, H W latent height and width.

Each sampler is a pure function of a denoiser `model(x, sigma)`, a state and noise levels. Captions and guidance are
wrapped around the denoiser beforehand (`microdit.diffusion.guidance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.registry import Registry
from microdit.diffusion import registry
from microdit.diffusion.config import DEFAULT_SAMPLER, ChurnConfig, SamplerConfig
from microdit.diffusion.guidance import GuidedModel, Model
from microdit.diffusion.noise_schedules import sigma_steps

StepCallback = Callable[[int, int, Tensor], None]  # (step from 1, steps, latents (B, C, H, W) float64 after it)


class Sampler(Protocol):
    """Integrate a state from the first noise level to the last; type of samplers."""

    def __call__(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor,
        config: SamplerConfig = ...,
        generators: Sequence[torch.Generator] = ...,
        callback: StepCallback | None = ...,
    ) -> Tensor:
        """Return the state at the last noise level.

        Args:
            model: denoiser (x float32, sigma (B,) float32) -> (B, C, H, W).
            x: state at the first noise level, clean + sigma * noise, (B, C, H, W) float64.
            sigmas: falling noise levels (steps + 1,), float64, the last one 0.
            config: settings; `config.options` holds free keys.
            generators: one per image for stochastic samplers, so that an image does not depend on others of its batch.
            callback: called after each step.

        Returns:
            (B, C, H, W), float64.
        """


def sample_euler(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    config: SamplerConfig = DEFAULT_SAMPLER,
    generators: Sequence[torch.Generator] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Integrate by Euler's method (EDM, algorithm 2 without lines 7 to 9).

    This is DDIM's step (arXiv 2010.02502).

    Args:
        model: denoiser (x float32, sigma (B,) float32) -> (B, C, H, W).
        x: state at the first noise level (B, C, H, W), float64.
        sigmas: falling noise levels (steps + 1,), float64, the last one 0.
        config: its `churn` adds noise before each step.
        generators: one per image; needed for churn.
        callback: called after each step.

    Returns:
        State at the last noise level (B, C, H, W), float64.
    """
    steps = len(sigmas) - 1
    for i in range(steps):
        x, sigma = _churn(x, sigmas[i].item(), steps, config.churn, generators)
        x = x + (sigmas[i + 1].item() - sigma) * slope(model, x, sigma)
        if callback is not None:
            callback(i + 1, steps, x)
    return x


def sample_heun(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    config: SamplerConfig = DEFAULT_SAMPLER,
    generators: Sequence[torch.Generator] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Integrate by Heun's method (EDM, algorithm 2).

    The last step, to sigma 0, has no correction.

    Args:
        model: denoiser (x float32, sigma (B,) float32) -> (B, C, H, W).
        x: state at the first noise level (B, C, H, W), float64.
        sigmas: falling noise levels (steps + 1,), float64, the last one 0.
        config: its `churn` adds noise before each step.
        generators: one per image; needed for churn.
        callback: called after each step.

    Returns:
        State at the last noise level (B, C, H, W), float64.
    """
    steps = len(sigmas) - 1
    for i in range(steps):
        x, sigma = _churn(x, sigmas[i].item(), steps, config.churn, generators)
        following = sigmas[i + 1].item()
        d = slope(model, x, sigma)
        moved = x + (following - sigma) * d
        if following > 0:
            moved = x + (following - sigma) * (d + slope(model, moved, following)) / 2
        x = moved
        if callback is not None:
            callback(i + 1, steps, x)
    return x


SAMPLERS: Registry[Sampler] = registry.SAMPLERS
register_sampler = SAMPLERS.register


@torch.no_grad()
def sample(
    model: Model,
    noise: Tensor,
    config: SamplerConfig,
    generators: Sequence[torch.Generator] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Draw samples with the sampler and the noise schedule that `config` names.

    The state is float64, so that only the network's precision limits the result.

    Args:
        model: denoiser (x float32, sigma (B,)) -> (B, C, H, W).
        noise: unit normal (B, C, H, W).
        config: settings of the sampler.
        generators: one per image; needed if `config.churn.amount` is above 0.
        callback: called after each step.

    Returns:
        Clean latents (B, C, H, W), float32.

    Raises:
        ConfigError: if sampler or schedule are unknown or invalid, or churn lacks generators.
    """
    sigmas = sigma_steps(config)
    x = noise.double() * sigmas[0].item()
    return SAMPLERS.resolve(config.type)(model, x, sigmas, config, generators, callback).float()


def slope(model: Model, x: Tensor, sigma: float) -> Tensor:
    """Return the slope dx/dsigma = (x - D(x; sigma)) / sigma.

    This is EDM, equation 3, with sigma(t) = t.

    Args:
        model: denoiser (x float32, sigma (B,)) -> (B, C, H, W).
        x: state (B, C, H, W), float64.
        sigma: its noise level, above 0.

    Returns:
        (B, C, H, W), float64.
    """
    levels = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
    at_level = partial(model.at_level, level=sigma) if isinstance(model, GuidedModel) else model
    return (x - at_level(x.float(), levels).double()) / sigma


def _churn(
    x: Tensor, sigma: float, steps: int, churn: ChurnConfig, generators: Sequence[torch.Generator]
) -> tuple[Tensor, float]:
    """Return state and noise level after adding noise (EDM, algorithm 2, lines 4 to 6)."""
    if churn.amount <= 0 or not churn.sigma_min <= sigma <= churn.sigma_max:
        return x, sigma
    if len(generators) != len(x):
        raise ConfigError("'sampler.churn.amount' is above 0: a generator of each image is needed")
    raised = sigma * (1 + min(churn.amount / steps, 2**0.5 - 1))
    fresh = torch.stack([torch.randn(x.shape[1:], generator=each, dtype=torch.float64) for each in generators])
    return x + (raised**2 - sigma**2) ** 0.5 * churn.noise * fresh.to(x.device, non_blocking=True), raised
