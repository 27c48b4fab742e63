"""Measure training speed as a share of the matmul peak, and masking's speed-up as a share of what FLOPs predict.

The speeds are those of the trainer's own loop on random data.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness import matmul_peak
from sizes import fitting, measured_config

from microdit.pipeline.cost import image_flops
from sweeps.planning import throughput

PEAK_SHARE = {"DiT-Tiny/2": 0.45, "MicroDiT_XL_2": 0.50}  # unmasked, of the bf16 matmul peak measured here
SPEEDUP_SHARE = 0.85  # at 75% masking, of the FLOP-predicted speed-up
SECONDS = 4.0  # of timed steps
# Those without a target come last, since time may be short.
CASES = [(network, ratio) for ratios in ((0.0, 0.75), (0.5,)) for network in PEAK_SHARE for ratio in ratios]


@pytest.fixture(scope="module")
def peaks() -> dict[str, float]:
    """Return the matmul peak by device."""
    return {}


@pytest.fixture(scope="module")
def images_per_second() -> dict[tuple[str, str, float], float]:
    """Return the speeds measured so far by device, network and masking ratio."""
    return {}


@pytest.mark.parametrize(("network", "ratio"), CASES)
def test_training_reaches_its_share_of_the_peak(
    network: str,
    ratio: float,
    device: torch.device,
    peaks: dict[str, float],
    images_per_second: dict[tuple[str, str, float], float],
    figure: Callable[..., None],
):
    gpu = device.type == "cuda"
    config = fitting(measured_config(network, ratio, device, compile=gpu))
    if device.type not in peaks:
        peaks[device.type] = matmul_peak(device, torch.bfloat16)
    times = throughput.time_steps(config, SECONDS if gpu else 0.0)
    speed = config.training.batch_size / times.step
    images_per_second[device.type, network, ratio] = speed
    name, flops = f"{network}, {ratio:.0%}", image_flops(config)
    figure("bf16 matmul peak, TFLOP/s", peaks[device.type] / 1e12)
    figure(f"{name}: images per micro-batch", config.training.batch_size // config.training.accumulation)
    figure(f"{name}: seconds to build and compile", times.first)
    figure(f"{name}: images/s", speed)
    figure(f"{name}: TFLOP/s", flops * speed / 1e12)
    target = PEAK_SHARE[network] if gpu and ratio == 0 else None
    figure(f"{name}: share of the peak", flops * speed / peaks[device.type], at_least=target)
    unmasked = images_per_second.get((device.type, network, 0.0))
    if ratio and unmasked:
        predicted = image_flops(measured_config(network, 0.0, device)) / flops
        figure(f"{name}: speed-up", speed / unmasked)
        share = speed / unmasked / predicted
        figure(
            f"{name}: share of the predicted speed-up", share, at_least=SPEEDUP_SHARE if gpu and ratio == 0.75 else None
        )
