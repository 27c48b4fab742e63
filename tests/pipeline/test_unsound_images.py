"""Test that non-finite images and scores fail with a reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from microdit.common.errors import ConfigError, DivergenceError
from microdit.common.finite import is_sound, require_finite, require_sound
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import AutoencoderConfig
from microdit.model.cost.memory import check_memory

HUGE = 1.7976931348623157e308


@pytest.mark.parametrize("path", ["pixels", "builtin"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_decoded_image_that_is_not_finite_is_rejected(path: str, value: float) -> None:
    autoencoder = build_autoencoder(AutoencoderConfig(path))
    latents = torch.zeros(2, autoencoder.channels, 8, 8)
    assert autoencoder.decode(latents).dtype == torch.uint8
    latents[1, 0, 3, 3] = value
    with pytest.raises(DivergenceError, match=r"of 2 decoded images are not finite"):
        autoencoder.decode(latents)


def test_the_first_bad_image_is_named() -> None:
    x = torch.zeros(4, 3, 2, 2)
    x[2:, 0, 0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"2 of 4 samples are not finite .*, the first is 2"):
        require_finite(x, "samples")
    assert require_finite(x[:2], "samples") is not None
    assert require_finite(x[:0], "samples") is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, HUGE, -HUGE])
def test_a_metric_that_is_not_finite_is_named(value: float) -> None:
    assert not is_sound(value)
    with pytest.raises(DivergenceError, match="final/fd is"):
        require_sound({"final/kid": 0.0, "final/fd": value}, "at the end")


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300, np.float32(2.0), 3])
def test_finite_numbers_pass(value: float) -> None:
    assert is_sound(value)
    assert require_sound({"a": value}, "") == {"a": value}


def test_a_run_that_this_machine_cannot_hold_is_rejected_before_it_is_built() -> None:
    cpu = torch.device("cpu")
    check_memory(10**6, 1e6, 1e6, cpu, 1)
    for parameters, batch, images, word in (
        (10**13, 1.0, 1.0, "parameters"),
        (1, 1e15, 1.0, "batch_size"),
        (1, 1.0, 1e15, "evaluation.samples"),
    ):
        with pytest.raises(ConfigError, match=f"{word}.* GiB"):
            check_memory(parameters, batch, images, cpu, 1)
