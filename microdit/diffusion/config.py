"""Define the settings of the training objective, noise levels and samplers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import FrozenOptions, InfiniteFloat

if TYPE_CHECKING:
    from torch import Tensor

GuidedBy = Literal["caption", "path_drop"]  # what the weaker prediction of guidance lacks


@dataclass(frozen=True)
class DiffusionConfig:
    """Configure what the network is trained to predict, and at which noise levels."""

    p_mean: Annotated[float, Range(-100, 100)] = -0.6  # ln(sigma) ~ N(p_mean, p_std^2), for `distribution` lognormal
    p_std: Annotated[float, Range(above=0, most=100)] = 1.2
    sigma_data: Annotated[float | None, Range(above=0, most=1e12)] = None  # deviation of the latents; null: measured
    objective: str = "edm"  # edm | dotted path of an Objective class
    distribution: str = "lognormal"  # lognormal | dotted path of a NoiseDistribution class
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for classes of the user's

    def __post_init__(self) -> None:
        check_settings("diffusion", self)


DEFAULT_DIFFUSION = DiffusionConfig()


@dataclass(frozen=True)
class GuidanceInterval:
    """Limit guidance to noise levels in (sigma_low, sigma_high].

    At other levels the conditional model runs alone (Kynkäänniemi et al., arXiv 2404.07724, section 3).
    """

    sigma_low: Annotated[float, Range(0)] = 0.0
    sigma_high: InfiniteFloat | None = None  # null: no upper end

    def __post_init__(self) -> None:
        check_settings("sampler.guidance_interval", self)
        if self.sigma_high is not None and not self.sigma_high > self.sigma_low:
            raise ConfigError(
                f"'sampler.guidance_interval.sigma_high' is {self.sigma_high}; it must be above 'sigma_low' "
                f"({self.sigma_low}), or null for no upper end"
            )

    @property
    def everywhere(self) -> bool:
        """Return whether all levels are included."""
        return self.sigma_low == 0 and self.sigma_high is None

    def contains(self, sigma: Tensor) -> Tensor:
        """Return which noise levels are in the interval.

        Its ends are rounded to the precision of the levels.

        Args:
            sigma: (B,).

        Returns:
            (B,) bool.
        """
        above = sigma > self.sigma_low
        return above if self.sigma_high is None else above & (sigma <= self.sigma_high)


EVERYWHERE = GuidanceInterval()


@dataclass(frozen=True)
class ChurnConfig:
    """Configure noise added between sampling steps (EDM, algorithm 2).

    `amount` (S_churn) 0 keeps the sampler deterministic.
    """

    amount: Annotated[float, Range(-1e6, 1e6)] = 0.0
    sigma_min: Annotated[float, Range(-1e12, 1e12)] = 0.0  # S_tmin
    sigma_max: InfiniteFloat = 1e9  # S_tmax
    noise: Annotated[float, Range(-1e6, 1e6)] = 1.0  # S_noise

    def __post_init__(self) -> None:
        check_settings("sampler.churn", self)


@dataclass(frozen=True)
class SamplerConfig:
    """Configure how samples are drawn.

    With `guidance` 1 the conditional model runs alone.
    """

    type: str = "heun"  # heun | euler | dotted path of a sampler function
    steps: Annotated[int, Range(1, 10**5)] = 18
    guidance: Annotated[float, Range(-1e6, 1e6)] = 1.0
    guidance_by: GuidedBy = "caption"
    guidance_interval: GuidanceInterval = EVERYWHERE
    sigma_min: Annotated[float, Range(above=0, most=1e12)] = 0.002
    sigma_max: Annotated[float, Range(above=0, most=1e12)] = 80.0
    rho: Annotated[float, Range(above=0, most=1e6)] = 7.0
    churn: ChurnConfig = ChurnConfig()
    schedule: str = "karras"  # noise levels of the steps: karras | dotted path of a noise schedule function
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for functions of the user's

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


DEFAULT_SAMPLER = SamplerConfig()
