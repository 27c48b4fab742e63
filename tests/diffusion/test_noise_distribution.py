"""Test noise distributions: a user's class needs only a quantile function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from microdit.common.rng import generator
from microdit.diffusion.config import DiffusionConfig
from microdit.diffusion.noise_distribution import NoiseDistribution


class Uniform(NoiseDistribution):
    """Draw uniformly on (0, 1), and record the shares; the quantile is the share itself."""

    def quantile(self, share: Tensor) -> Tensor:
        self.shares = share
        return share


def test_draws_are_quantiles_of_uniform_shares() -> None:
    uniform = Uniform(DiffusionConfig())
    drawn = uniform.draw(4000, generator(0, "sigma"))
    assert (drawn.shape, drawn.dtype, uniform.shares.dtype) == ((4000,), torch.float32, torch.float64)
    assert torch.equal(drawn, uniform.draw(4000, generator(0, "sigma")))
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is exceeded with probability 0.001.
    steps = torch.arange(1, 4001) / 4000
    assert (drawn.sort().values - steps).abs().max() < 1.95 / 4000**0.5


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_no_share_reaches_0_or_1(extreme: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unbounded quantile function is infinite there."""
    monkeypatch.setattr(torch, "rand", lambda *size, dtype, **_: torch.full(size, extreme, dtype=dtype))
    uniform = Uniform(DiffusionConfig())
    uniform.draw(3, generator(0, "sigma"))
    assert 0 < uniform.shares.min() <= uniform.shares.max() < 1


def test_mid_quantiles_are_the_middles_of_equal_shares() -> None:
    uniform = Uniform(DiffusionConfig())
    torch.testing.assert_close(uniform.mid_quantiles(5), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    assert uniform.shares.dtype == torch.float64
