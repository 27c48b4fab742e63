"""Test the memory estimate of training steps against what a GPU allocates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sizes import NETWORKS, fitting, measured_config

from microdit.training.memory import CONTEXT_BYTES, FRAGMENTATION, training_memory
from sweeps.planning import throughput

TOLERANCE = 0.15
SHARE = 0.5  # of the GPU's memory, for the micro-batch


@pytest.mark.parametrize("ratio", [0.0, 0.75])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_allocates_what_is_estimated(
    network: str, ratio: float, device: torch.device, figure: Callable[..., None]
):
    config = fitting(measured_config(network, ratio, device), SHARE)
    micro = config.training.batch_size // config.training.accumulation
    config = replace(config, training=replace(config.training, batch_size=micro, accumulation=1))
    estimate = (training_memory(config).total(micro) - CONTEXT_BYTES) / FRAGMENTATION
    throughput.time_steps(config, seconds=0.0)
    figure(f"{network}, {ratio:.0%}: images per micro-batch", micro)
    figure(f"{network}, {ratio:.0%}: estimated GB", estimate / 1e9)
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated()
        figure(f"{network}, {ratio:.0%}: allocated GB", allocated / 1e9)
        figure(
            f"{network}, {ratio:.0%}: allocated / estimated",
            allocated / estimate,
            at_least=1 - TOLERANCE,
            at_most=1 + TOLERANCE,
        )
