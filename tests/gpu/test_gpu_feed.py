"""Test that batches on the device have the values of the stored data, resident or copied through pinned memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from microdit.config.schema import Config
from microdit.data.latents.caption_store import StoredCaptions
from microdit.data.latents.training_data import BatchSampler, EncodedDataset
from microdit.model import DiT
from microdit.pipeline.inputs import build_components
from microdit.training.feed import device_rows as resident
from microdit.training.feed.batches import Batch, BatchFeed, TrainingRows, draw_batch

STEPS = 4


@pytest.fixture(scope="module")
def data(smoke_config: Config) -> EncodedDataset:
    return build_components(smoke_config).train


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    batch.map(collect)
    return found


def drawn(config: Config, rows: TrainingRows) -> Callable[[int], Batch]:
    net, order = DiT(config.model, seed=None), BatchSampler(len(rows), config.training.batch_size, config.seed)
    return lambda step: draw_batch(config, step, rows, order, net)


def test_resident_rows_are_the_stored_ones(data: EncodedDataset, device: torch.device):
    assert isinstance(data.features, StoredCaptions)
    rows = resident.DeviceRows(data, data.features, device)
    chosen = np.random.default_rng(0).permutation(len(data))[:40]
    for ours, stored in zip(rows.stored(chosen), data.stored(chosen), strict=True):
        assert isinstance(ours, Tensor)
        assert ours.device.type == device.type
        assert torch.equal(ours.cpu(), stored)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_feed_gives_the_batches_of_the_host(
    data: EncodedDataset,
    smoke_config: Config,
    share: float,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[..., None],
):
    monkeypatch.setattr(resident, "MAX_SHARE_OF_FREE_MEMORY", share)
    rows = resident.device_rows(data, device)
    kept = device.type == "cuda" and share > 0
    assert isinstance(rows, resident.DeviceRows) == kept
    wanted = [drawn(smoke_config, data)(step) for step in range(STEPS)]
    feed = BatchFeed(drawn(smoke_config, rows), range(STEPS), device, ahead=2)
    for expected, batch in zip(wanted, feed, strict=True):
        for ours, theirs in zip(tensors(batch), tensors(expected), strict=True):
            assert ours.device.type == device.type
            assert torch.equal(ours.cpu(), theirs)
    figure("kept on the device", kept)


def test_a_feed_closed_early_ends_its_thread(data: EncodedDataset, smoke_config: Config, device: torch.device):
    before = threading.active_count()
    batches = iter(BatchFeed(drawn(smoke_config, data), range(10**6), device, ahead=2))
    assert len(list(islice(batches, 2))) == 2
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
