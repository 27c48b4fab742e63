"""Test how batches are drawn ahead and brought to the device."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from word_encoder import encode

from microdit.config.identity import trial_key
from microdit.config.schema import Config
from microdit.data.latents.caption_store import StoredCaptions
from microdit.data.latents.training_data import BatchSampler, EncodedDataset
from microdit.model import DiT
from microdit.model.conditioning import unpack
from microdit.model.config import MaskingConfig, RouteConfig
from microdit.model.masking.registry import MASKING_METHODS
from microdit.training.feed.batches import Batch, BatchFeed, TrainingRows, draw_batch
from microdit.training.feed.device_rows import DeviceRows, device_rows, stored_bytes

CPU = torch.device("cpu")


@pytest.fixture(params=[False, True], ids=["every token counts", "padding is masked"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> EncodedDataset:
    return encode(tmp_path, masked=request.param)


def tensors(batch: Batch) -> list[Tensor]:
    """Return all tensors of a batch."""
    found: list[Tensor] = []
    batch.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def assert_equal(one: Batch, other: Batch) -> None:
    left, right = tensors(one), tensors(other)
    assert [(t.shape, t.dtype) for t in left] == [(t.shape, t.dtype) for t in right]
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def drawer(config: Config, data: TrainingRows, own: slice = slice(None)):
    order, net = BatchSampler(len(data), config.training.batch_size, 0), DiT(config.model)
    return lambda step: draw_batch(config, step, data, order, net, own)


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch feed"]


@contextmanager
def no_thread_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30
    while feed_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not feed_threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_batches_drawn_ahead_are_those_of_each_step(smoke_config: Config, data: EncodedDataset, ahead: int):
    draw = drawer(smoke_config, data)
    with no_thread_left(), closing(iter(BatchFeed(draw, range(2, 9), CPU, ahead))) as batches:
        for step, batch in zip(range(2, 9), batches, strict=True):
            assert_equal(batch, draw(step))


def test_an_error_of_a_draw_reaches_the_training_loop_at_its_step(smoke_config: Config, data: EncodedDataset):
    draw = drawer(smoke_config, data)

    def failing(step: int) -> Batch:
        if step == 3:
            raise OSError("shard is gone")
        return draw(step)

    with no_thread_left():
        batches = iter(BatchFeed(failing, range(6), CPU, 2))
        for _ in range(3):
            next(batches)
        with pytest.raises(OSError, match="shard is gone"):
            next(batches)


def test_a_loop_that_stops_early_ends_the_thread(smoke_config: Config, data: EncodedDataset):
    with no_thread_left():
        with closing(iter(BatchFeed(drawer(smoke_config, data), range(1000), CPU, 2))) as batches:
            next(batches)
        assert not feed_threads()


def test_half_precision_travels_and_the_loss_receives_full_precision(smoke_config: Config, data: EncodedDataset):
    batch = drawer(smoke_config, data)(0)
    assert (batch.x.dtype, unpack(batch.y)[0].dtype) == (torch.float16, torch.float16)
    x, y, sigma, noise, _, _ = batch.arguments()
    assert {t.dtype for t in (x, unpack(y)[0], sigma, noise)} == {torch.float32}
    rows = BatchSampler(len(data), smoke_config.training.batch_size, 0)(0)
    latents, _ = data.batch(rows)
    assert torch.equal(x, latents)


def test_micro_batches_are_the_batch_in_parts(smoke_config: Config, data: EncodedDataset):
    batch = drawer(smoke_config, data)(1)
    parts = [tensors(batch.rows(slice(start, start + 2))) for start in range(0, len(batch.x), 2)]
    for whole, pieces in zip(tensors(batch), zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("method", MASKING_METHODS)
@pytest.mark.parametrize("step", [0, 1], ids=["masked", "in the unmasked tail"])
def test_processes_draw_their_rows_of_the_global_batch(
    smoke_config: Config, data: EncodedDataset, method: str, step: int
):
    route = RouteConfig(1, 0, path_drop=0.5 if method == "sprint" else 0.0)
    masking = MaskingConfig(method, 0.0 if method == "none" else 0.5, route=route)
    training = dataclasses.replace(smoke_config.training, steps=2, unmasked_tail=0.5, caption_dropout=0.5)
    model = dataclasses.replace(smoke_config.model, masking=masking)
    config = dataclasses.replace(smoke_config, model=model, training=training)
    whole = drawer(config, data)(step)
    for processes in (2, 4, 8):
        own = len(whole.x) // processes
        for start in range(0, len(whole.x), own):
            rows = slice(start, start + own)
            assert_equal(drawer(config, data, rows)(step), whole.rows(rows))


def test_rows_kept_on_the_device_are_those_read_from_disk(smoke_config: Config, data: EncodedDataset):
    assert isinstance(data.features, StoredCaptions)
    kept = DeviceRows(data, data.features, CPU)
    assert len(kept) == len(data)
    for step in range(3):
        assert_equal(drawer(smoke_config, kept, slice(1, 5))(step), drawer(smoke_config, data, slice(1, 5))(step))


def test_the_size_of_kept_rows_is_predicted(data: EncodedDataset):
    assert isinstance(data.features, StoredCaptions)
    kept = DeviceRows(data, data.features, CPU)
    held = [value for value in vars(kept).values() if isinstance(value, Tensor)]
    assert stored_bytes(data, data.features) == sum(tensor.nbytes for tensor in held)


def test_without_a_gpu_rows_are_read_from_disk(data: EncodedDataset):
    assert device_rows(data, CPU) is data


def test_where_numbers_are_drawn_is_part_of_the_key(smoke_config: Config):
    on_device = dataclasses.replace(smoke_config, training=dataclasses.replace(smoke_config.training, draws="device"))
    assert trial_key(on_device) != trial_key(smoke_config)
