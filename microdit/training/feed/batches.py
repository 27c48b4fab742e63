"""Draw the inputs of training steps and copy them to the device, ahead on a GPU.

B images of the global batch, C H W latent shape, S text tokens, Y text width, T patches, E features to align with.

The inputs of a step depend on (seed, step) alone, not on how many processes or micro-batches share the global batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from microdit.common.rng import RowDraws, generator
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import draw_sigma
from microdit.model import DiT, PatchMask
from microdit.model.conditioning import Captions, drop_captions, map_tensors
from microdit.training.config import Recipe

BATCHES_AHEAD = 2  # batches that wait on the device while a step runs
POLL_SECONDS = 0.2  # how often a worker with a full queue checks whether it is still needed


@dataclass(frozen=True)
class Batch:
    """Hold the inputs of the loss for B images."""

    x: Tensor  # (B, C, H, W) latents
    y: Captions  # (B, S, Y)
    sigma: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W)
    target: Tensor  # (B, T, E) features of the clean patches; (B, 0, 0) if there are none
    plan: PatchMask | None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor replaced.

        Args:
            function: maps a tensor of the batch to the new one.
        """
        plan = None if self.plan is None else self.plan.map(function)
        x, y, target = function(self.x), map_tensors(function, self.y), function(self.target)
        return Batch(x, y, function(self.sigma), function(self.noise), target, plan)

    def rows(self, rows: slice) -> Batch:
        """Return some images of the batch."""
        return self.map(lambda tensor: tensor[rows])

    def arguments(self) -> tuple[Tensor, Captions, Tensor, Tensor, Tensor, PatchMask | None]:
        """Return the loss's arguments, in the order of `TrainingLoss.forward`.

        Returns:
            The fields of the batch. Latents and captions, which may be stored in half precision, are float32.
        """
        y = map_tensors(lambda tensor: tensor if tensor.dtype == torch.bool else tensor.float(), self.y)
        return self.x.float(), y, self.sigma, self.noise, self.target, self.plan


class TrainingRows(Protocol):
    """Provide latents, captions and alignment targets by row, as they are stored."""

    def __len__(self) -> int: ...

    def stored(self, rows: np.ndarray) -> tuple[Tensor, Captions, Tensor]:
        """Return some rows in the precision in which they are stored.

        Args:
            rows: (B,) integers in [0, len).

        Returns:
            Latents (B, C, H, W), captions (B, S, Y) and targets (B, T, E).
        """
        ...


def draw_batch(
    config: Recipe,
    step: int,
    data: TrainingRows,
    order: BatchSampler,
    net: DiT,
    own: slice = slice(None),
    device: torch.device | str = "cpu",
) -> Batch:
    """Draw some rows of the global batch of a step.

    Args:
        config: settings of the run.
        step: counted from 0.
        data: source of latents and captions.
        order: chooses the images of each step.
        net: draws the mask.
        own: rows of the global batch; all by default.
        device: where noise, noise levels, dropped captions and masks are drawn; other devices draw other numbers.

    Returns:
        The batch. Latents, captions and targets are where `data` has them, all else is on `device`.
    """
    seed, batch, rows = config.seed, config.training.batch_size, order(step)[own]
    x, y, target = data.stored(rows)
    sigma = draw_sigma(batch, config.diffusion, generator(seed, "sigma", step, device))[own]
    noise = RowDraws(generator(seed, "noise", step, device), batch, own).normal(*x.shape[1:])
    dropout = RowDraws(generator(seed, "caption dropout", step, device), batch, own)
    nulls = dropout.uniform() < config.training.caption_dropout
    masked = step < config.training.masked_steps
    plan = net.mask_plan(batch, generator(seed, "mask", step, device), masked, own)
    return Batch(x, drop_captions(y, copy_to(x.device, nulls)), sigma, noise, target, plan)


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor to a device, without waiting for it.

    A copy to a GPU is from pinned memory, since other copies wait.

    Args:
        device: the target.
        tensor: on any device.

    Returns:
        The copy, or `tensor` itself if it is on the device.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class BatchFeed:
    """Iterate over the batches of consecutive steps, on `device`.

    On a GPU a thread draws the next batches into pinned memory and copies them on a separate stream, so the training
    loop never waits for the host. On a CPU each batch is drawn when it is needed.

    Args:
        draw: returns the batch of a step, counted from 0; a pure function, since a thread may call it ahead of time.
        steps: the steps to draw, in order.
        device: where the batches are needed.
        ahead: number of batches that a thread draws ahead; 0 draws in the caller; None means `BATCHES_AHEAD` on a GPU,
            else 0.
    """

    def __init__(
        self, draw: Callable[[int], Batch], steps: range, device: torch.device, ahead: int | None = None
    ) -> None:
        self._draw, self._steps, self._device = draw, steps, device
        on_gpu = device.type == "cuda" and torch.cuda.is_available()
        self._ahead = (BATCHES_AHEAD if on_gpu else 0) if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if on_gpu and self._ahead else None
        self._stopping = threading.Event()

    def __iter__(self) -> Generator[Batch]:
        """Yield the batches; close the iterator to stop the thread early."""
        if not self._ahead:
            for step in self._steps:
                yield self._copied(self._draw(step))
            return
        ready: queue.Queue[_Ready] = queue.Queue(self._ahead)
        worker = threading.Thread(target=self._work, args=(ready,), name="batch feed", daemon=True)
        worker.start()
        try:
            for _ in self._steps:
                yield self._received(ready.get())
        finally:
            self._stopping.set()
            worker.join()

    def _work(self, ready: queue.Queue[_Ready]) -> None:
        for step in self._steps:
            try:
                item = self._prepared(step)
            except BaseException as error:  # raised again in the training loop
                item = _Ready(error=error)
            while not self._stopping.is_set():
                try:
                    ready.put(item, timeout=POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if self._stopping.is_set() or item.error is not None:
                return

    def _prepared(self, step: int) -> _Ready:
        if self._stream is None:
            return _Ready(self._copied(self._draw(step)))
        with torch.cuda.stream(self._stream):
            return _Ready(self._copied(self._draw(step)), self._stream.record_event())

    def _copied(self, batch: Batch) -> Batch:
        return batch.map(partial(copy_to, self._device))

    def _received(self, item: _Ready) -> Batch:
        """Return the batch once the current stream may read it."""
        if item.error is not None:
            raise item.error
        assert item.batch is not None
        if item.copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(item.copied)

            def used_here(tensor: Tensor) -> Tensor:
                tensor.record_stream(current)  # its memory must not be reused before this stream's work is done
                return tensor

            item.batch.map(used_here)
        return item.batch


@dataclass(frozen=True)
class _Ready:
    """Hold a drawn batch and the event after its copy, or the error of its draw."""

    batch: Batch | None = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None
