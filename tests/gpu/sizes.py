"""Choose the networks, masking ratios and batches that are measured on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from microdit.config.schema import Config
from microdit.model.presets import preset
from microdit.training.memory import training_memory

NETWORKS = ("DiT-Tiny/2", "MicroDiT_XL_2")
BATCH = 256  # images of an optimizer step
SHARE_OF_MEMORY = 0.85


def measured_config(network: str, ratio: float, device: torch.device, **training: Any) -> Config:
    """Return settings that train a preset in bf16 with deferred masking; on a CPU a small network in its place."""
    config = Config.preset("gpu" if device.type == "cuda" else "smoke")
    model = preset(network) if device.type == "cuda" else config.model
    model = replace(model, masking=replace(model.masking, method="deferred", ratio=ratio))
    batch = BATCH if device.type == "cuda" else config.training.batch_size
    settings = {"precision": "bf16", "device": device.type, "batch_size": batch, "accumulation": 1, "compile": False}
    return replace(config, model=model, training=replace(config.training, **settings | training))


def fitting(config: Config, share: float = SHARE_OF_MEMORY) -> Config:
    """Return `config` with the largest micro-batch whose estimated memory is within a share of the GPU's."""
    settings = config.training
    total = torch.cuda.mem_get_info()[1] if settings.device == "cuda" else 1e12
    memory = training_memory(config)
    micro = memory.largest_micro_batch(share * total, settings.batch_size)
    if micro is None:
        pytest.skip(f"one image needs {memory.total(1) / 1e9:.0f} GB; this GPU has {total / 1e9:.0f} GB")
    return replace(config, training=replace(settings, accumulation=settings.batch_size // micro))
