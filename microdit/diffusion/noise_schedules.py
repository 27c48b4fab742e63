"""Compute the noise levels that a sampler steps through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.registry import Registry
from microdit.diffusion import registry
from microdit.diffusion.config import SamplerConfig

NoiseSchedule = Callable[[SamplerConfig], Tensor]  # settings -> sigma (steps + 1,), falling, the last one 0


def karras(config: SamplerConfig) -> Tensor:
    """Return noise levels from sigma_max to sigma_min, then 0.

    Steps are equal in sigma^(1/rho) (EDM, equation 5).

    Args:
        config: settings of the sampler.

    Returns:
        (steps + 1,), float64.
    """
    ramp = torch.linspace(0, 1, config.steps, dtype=torch.float64)
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return torch.cat([(high + ramp * (low - high)) ** config.rho, torch.zeros(1, dtype=torch.float64)])


NOISE_SCHEDULES: Registry[NoiseSchedule] = registry.NOISE_SCHEDULES
register_noise_schedule = NOISE_SCHEDULES.register


def sigma_steps(config: SamplerConfig) -> Tensor:
    """Return the noise levels that a sampler steps through.

    Args:
        config: names the schedule.

    Returns:
        Falling levels (steps + 1,), float64, the last one 0.

    Raises:
        ConfigError: if the schedule is unknown, or its levels are not steps + 1, not finite or do not fall to 0.
    """
    sigmas = NOISE_SCHEDULES.resolve(config.schedule)(config).double()
    falling = sigmas.ndim == 1 and bool(sigmas.isfinite().all()) and bool((sigmas.diff() < 0).all())
    if not falling or len(sigmas) != config.steps + 1 or sigmas[-1] != 0:
        raise ConfigError(
            f"'sampler.schedule' is '{config.schedule}'; it must return {config.steps + 1} finite noise levels "
            f"('sampler.steps' + 1) that fall to 0, got {[round(value, 4) for value in sigmas.flatten().tolist()[:8]]}"
        )
    return sigmas
