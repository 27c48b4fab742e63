"""Test the number of images that are sampled at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from microdit.model import DiTConfig
from microdit.pipeline.generate import MAX_DEVICE_BATCH, sampling_batch

GPU = torch.device("cuda", 0)
NET = DiTConfig(width=256, depth=4)


def on_gpu(patch: pytest.MonkeyPatch, free: float, config: DiTConfig = NET) -> int:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    return sampling_batch(config, GPU)


def test_on_a_gpu_it_grows_with_free_memory_up_to_a_limit(monkeypatch: pytest.MonkeyPatch):
    sizes = [on_gpu(monkeypatch, free) for free in (0, 1e6, 1e8, 2e8, 1e9, 1e12)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, MAX_DEVICE_BATCH)
    assert on_gpu(monkeypatch, 2e9) == 2 * on_gpu(monkeypatch, 1e9) < MAX_DEVICE_BATCH


def test_on_a_gpu_a_small_difference_of_free_memory_does_not_change_it(monkeypatch: pytest.MonkeyPatch):
    assert on_gpu(monkeypatch, 2.0e9) == on_gpu(monkeypatch, 2.1e9)


def test_a_wider_network_gets_fewer_images(monkeypatch: pytest.MonkeyPatch):
    assert on_gpu(monkeypatch, 2e9, replace(NET, width=512)) < on_gpu(monkeypatch, 2e9)
