"""Describe which patches of each image are kept, and draw random masks.

B batch, T patches, K kept patches, V values per patch, G patches per side (T = G * G), b patches per side of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from microdit.common.rng import RowDraws
from microdit.model.masking.kept_patches import kept_patches


@dataclass(frozen=True)
class PatchMask:
    """Select patches of each image; 0-based patch numbers run row by row."""

    ids_keep: Tensor  # (B, K) int64, the kept patches
    ids_restore: Tensor  # (B, T) int64: patch t is entry ids_restore[t] of [kept, dropped]
    mask: Tensor  # (B, T) float32, 1 where dropped
    shallow: Tensor | None = None  # (B,) bool, images that skip the middle blocks; None: no image does

    def map(self, function: Callable[[Tensor], Tensor]) -> PatchMask:
        """Return the mask with a function applied to each of its tensors.

        Args:
            function: such as an index of the batch, or a copy to a device.
        """
        shallow = None if self.shallow is None else function(self.shallow)
        return PatchMask(function(self.ids_keep), function(self.ids_restore), function(self.mask), shallow)

    def __getitem__(self, rows: slice) -> PatchMask:
        """Return the mask of some images of the batch."""
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> PatchMask:
        """Return the mask on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def keep(self, x: Tensor) -> Tensor:
        """Return the kept patches.

        Args:
            x: all patches (B, T, V).

        Returns:
            (B, K, V).
        """
        return x.gather(1, self.ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def mask_from_keep(ids_keep: Tensor, patches: int) -> PatchMask:
    """Return the mask that keeps given patches.

    Args:
        ids_keep: (B, K) int64 patch numbers, in the order in which tokens will be kept.
        patches: T.
    """
    batch, kept = ids_keep.shape
    mask = torch.ones(batch, patches, device=ids_keep.device).scatter(1, ids_keep, 0.0)
    # Dropped patches follow the kept ones in ascending order.
    ids_restore = mask.long().cumsum(dim=1) + (kept - 1)
    order = torch.arange(kept, device=ids_keep.device).expand(batch, -1)
    return PatchMask(ids_keep, ids_restore.scatter(1, ids_keep, order), mask)


def keep_all(batch: int, patches: int, device: torch.device | str = "cpu") -> PatchMask:
    """Return the mask that drops nothing.

    Args:
        batch: B.
        patches: T.
        device: of the mask.
    """
    return mask_from_keep(torch.arange(patches, device=device).repeat(batch, 1), patches)


def keep_none(batch: int, patches: int, device: torch.device | str = "cpu") -> PatchMask:
    """Return the mask that keeps no patch, for path-drop guidance.

    Args:
        batch: B.
        patches: T.
        device: of the mask.
    """
    return mask_from_keep(torch.empty(batch, 0, dtype=torch.int64, device=device), patches)


def random_mask(batch: int, side: int, ratio: float, block_size: int, generator: torch.Generator) -> PatchMask:
    """Return a mask of uniformly random blocks; kept patches ascend in an image.

    Args:
        batch: B.
        side: G.
        ratio: share of dropped patches, in [0, 1).
        block_size: b.
        generator: source of randomness; its device is the mask's.

    Raises:
        ConfigError: if the blocks do not divide the grid, or none is kept.
    """
    return draw_mask(RowDraws(generator, batch), side, ratio, block_size)


def draw_mask(draws: RowDraws, side: int, ratio: float, block_size: int) -> PatchMask:
    """Return the rows of a mask as `random_mask` makes it.

    Args:
        draws: source of randomness, and the rows.
        side: G.
        ratio: share of dropped patches, in [0, 1).
        block_size: b.

    Raises:
        ConfigError: if the blocks do not divide the grid, or none is kept.
    """
    kept = kept_patches(side, ratio, block_size) // block_size**2
    coarse = side // block_size
    order = draws.uniform(coarse**2).argsort(dim=1)[:, :kept]
    row, column = order // coarse, order % coarse  # (B, kept) each, in blocks
    inside = torch.arange(block_size, device=draws.device)
    rows = (row.unsqueeze(-1) * block_size + inside).unsqueeze(-1)  # (B, kept, b, 1)
    columns = (column.unsqueeze(-1) * block_size + inside).unsqueeze(-2)  # (B, kept, 1, b)
    ids_keep = (rows * side + columns).flatten(1).sort(dim=1).values
    return mask_from_keep(ids_keep, side**2)
