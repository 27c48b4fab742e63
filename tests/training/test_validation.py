"""Test the noise levels of the validation loss."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn

from microdit.config.schema import Config
from microdit.diffusion import DiffusionConfig
from microdit.pipeline.inputs import build_components
from microdit.training.validation import validate


class Levels(nn.Module):
    """Return ln(sigma) as the loss, and record the levels."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def loss(self, x: Tensor, y: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        self.seen += sigma.log().tolist()
        return sigma.log()


def measured(
    config: Config, trained: tuple[float, float], validated: tuple[float | None, float | None]
) -> tuple[dict[str, float], list[float]]:
    """Return the reported loss after training on one distribution and validating on another, and ln(sigma)."""
    evaluation = dataclasses.replace(config.evaluation, p_mean=validated[0], p_std=validated[1])
    config = dataclasses.replace(config, diffusion=DiffusionConfig(*trained), evaluation=evaluation)
    levels = Levels()
    return validate(levels, build_components(config).val, config), levels.seen  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trained", "validated", "expected"),
    [
        ((-0.6, 1.2), (None, None), (-0.6, 1.2)),
        ((0.4, 1.0), (-0.6, 1.2), (-0.6, 1.2)),
        ((0.4, 1.0), (-0.6, None), (-0.6, 1.0)),
        ((0.4, 1.0), (0.0, 0.5), (0.0, 0.5)),
    ],
)
def test_levels_are_quantiles_of_the_configured_distribution(
    smoke_config: Config, trained: tuple, validated: tuple, expected: tuple[float, float]
):
    values, seen = measured(smoke_config, trained, validated)
    count = smoke_config.training.val_images
    law = NormalDist(*expected)
    assert sorted(seen) == pytest.approx([law.inv_cdf((i + 0.5) / count) for i in range(count)], abs=1e-5)
    assert values["val/loss"] == pytest.approx(expected[0], abs=1e-5)
    quarters = [values[f"val/loss_q{band}"] for band in range(1, 5)]
    assert quarters == sorted(quarters)


def test_arms_trained_on_different_noise_are_validated_on_the_same_levels(smoke_config: Config):
    arms = [measured(smoke_config, trained, (-0.6, 1.2)) for trained in ((-1.2, 1.2), (0.0, 0.6))]
    assert arms[0] == arms[1]
    apart = [measured(smoke_config, trained, (None, None)) for trained in ((-1.2, 1.2), (0.0, 0.6))]
    assert apart[0] != apart[1]
