"""Draw the noise levels of training and validation.

B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microdit.common.registry import Registry
from microdit.diffusion import registry
from microdit.diffusion.config import DiffusionConfig


class NoiseDistribution:
    """Describe the distribution of sigma in training; base class.

    Implement `quantile`; override `draw` if there is a faster way.

    Args:
        config: settings of the diffusion; `config.options` holds free keys.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config

    def quantile(self, share: Tensor) -> Tensor:
        """Return the inverse of the cumulative distribution.

        Args:
            share: probabilities in (0, 1), float64, of any shape.

        Returns:
            sigma above 0, of the same shape.
        """
        raise NotImplementedError

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return random noise levels.

        Args:
            batch: B.
            generator: its device is the result's.

        Returns:
            (B,), float32.
        """
        share = torch.rand(batch, generator=generator, dtype=torch.float64, device=generator.device)
        return self.quantile(share.clamp(1e-9, 1 - 1e-9)).float()

    def mid_quantiles(self, count: int) -> Tensor:
        """Return the middles of equal shares of the distribution.

        They integrate over the distribution without sampling noise, so that a validation loss changes only with the
        weights.

        Args:
            count: number of shares.

        Returns:
            Ascending noise levels (count,), float32.
        """
        return self.quantile((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()


class LogNormal(NoiseDistribution):
    """Draw ln(sigma) from N(p_mean, p_std^2) (EDM, arXiv 2206.00364, table 1).

    For flow matching with t = sigma / (1 + sigma) it is the logit-normal distribution of t (arXiv 2403.03206).
    """

    def quantile(self, share: Tensor) -> Tensor:
        return (torch.special.ndtri(share) * self.config.p_std + self.config.p_mean).exp()

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        return (
            torch.randn(batch, generator=generator, device=generator.device) * self.config.p_std + self.config.p_mean
        ).exp()


NOISE_DISTRIBUTIONS: Registry[type[NoiseDistribution]] = registry.NOISE_DISTRIBUTIONS
register_noise_distribution = NOISE_DISTRIBUTIONS.register


def build_noise_distribution(config: DiffusionConfig) -> NoiseDistribution:
    """Build the distribution that `config` names.

    Returns:
        The distribution of sigma.

    Raises:
        ConfigError: if the name is unknown.
    """
    return NOISE_DISTRIBUTIONS.resolve(config.distribution)(config)


def draw_sigma(batch: int, config: DiffusionConfig, generator: torch.Generator) -> Tensor:
    """Return random noise levels for a training step.

    Args:
        batch: B.
        config: names the distribution.
        generator: its device is the result's.

    Returns:
        (B,), float32.
    """
    return build_noise_distribution(config).draw(batch, generator)


def quantile_sigma(count: int, config: DiffusionConfig) -> Tensor:
    """Return the middles of `count` equal shares of the noise distribution.

    Args:
        count: number of shares.
        config: names the distribution.

    Returns:
        Ascending noise levels (count,), float32.
    """
    return build_noise_distribution(config).mid_quantiles(count)
