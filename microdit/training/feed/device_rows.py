"""Keep the training data on the GPU if it fits.

N images, M captions, C H W latent shape, S text tokens, Y text width, T patches, E features to align with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from microdit.data.latents.caption_store import StoredCaptions
from microdit.data.latents.training_data import EncodedDataset
from microdit.model.conditioning import Captions, unpack, with_mask
from microdit.training.feed.batches import TrainingRows, copy_to

MAX_SHARE_OF_FREE_MEMORY = 0.25  # the rest is for weights, optimizer and activations
ROWS_PER_COPY = 1024

log = logging.getLogger(__name__)


class DeviceRows:
    """Keep a dataset's latents, captions and targets as tensors on a device.

    Each distinct caption is stored once.

    Args:
        data: the dataset.
        captions: its caption features.
        device: where the tensors are.
    """

    def __init__(self, data: EncodedDataset, captions: StoredCaptions, device: torch.device) -> None:
        self._device = device
        unique, place = np.unique(captions.rows, return_inverse=True)
        self._caption_of = torch.from_numpy(place.reshape(-1)).to(device)  # (N,)
        self._latents = self._copied(len(data), lambda rows: torch.from_numpy(data.images.take(rows)))
        self._targets = self._copied(len(data), data.targets.batch)
        self._tokens = self._copied(len(unique), lambda rows: unpack(captions.store.take(unique[rows]))[0])
        masked = unpack(captions.store.take(unique[:1]))[1] is not None
        self._mask = self._copied(len(unique), lambda rows: _mask_of(captions, unique[rows])) if masked else None

    def __len__(self) -> int:
        return len(self._latents)

    def stored(self, rows: np.ndarray) -> tuple[Tensor, Captions, Tensor]:
        """Return some rows, on the device.

        Args:
            rows: (B,) integers in [0, N).

        Returns:
            Latents (B, C, H, W), captions (B, S, Y) and targets (B, T, E).
        """
        chosen = copy_to(self._device, torch.from_numpy(rows))
        captions = self._caption_of[chosen]
        y = with_mask(self._tokens[captions], None if self._mask is None else self._mask[captions])
        return self._latents[chosen], y, self._targets[chosen]

    def _copied(self, count: int, read: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Return rows 0 to `count` - 1 of what `read` returns."""
        first = read(np.arange(min(count, 1)))
        result = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=self._device)
        for start in range(0, count, ROWS_PER_COPY):
            rows = np.arange(start, min(start + ROWS_PER_COPY, count))
            result[start : start + len(rows)] = read(rows).to(self._device)
        return result


def _mask_of(captions: StoredCaptions, rows: np.ndarray) -> Tensor:
    mask = unpack(captions.store.take(rows))[1]
    assert mask is not None
    return mask


def stored_bytes(data: EncodedDataset, captions: StoredCaptions) -> int:
    """Return the bytes of GPU memory that `DeviceRows` needs.

    Args:
        data: the dataset.
        captions: its caption features.
    """
    latents, y, target = data.stored(np.arange(1))
    tokens, mask = unpack(y)
    per_caption = tokens.nbytes + (0 if mask is None else mask.nbytes)
    return len(data) * (latents.nbytes + target.nbytes + 8) + len(np.unique(captions.rows)) * per_caption


def device_rows(data: EncodedDataset, device: torch.device) -> TrainingRows:
    """Return the data on the GPU if it fits, else `data` itself; the choice is logged.

    Args:
        data: the dataset.
        device: where training runs.
    """
    if device.type != "cuda" or not torch.cuda.is_available() or not isinstance(data.features, StoredCaptions):
        return data
    needed, free = stored_bytes(data, data.features), torch.cuda.mem_get_info(device)[0]
    fits = needed <= MAX_SHARE_OF_FREE_MEMORY * free
    log.info(
        "training data: %.2f GB, %s (%.1f GB of GPU memory are free, at most %.0f%% of it is used for data)",
        needed / 1e9,
        "kept on the GPU" if fits else "read from disk ahead of each step",
        free / 1e9,
        100 * MAX_SHARE_OF_FREE_MEMORY,
    )
    return DeviceRows(data, data.features, device) if fits else data
