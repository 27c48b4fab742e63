"""Which patches the backbone sees, and what becomes of the others.

B batch, T patches, K kept patches, G patches a side (T = G * G), b patches a side of a block, V values of a patch,
D width, S text tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from microdit.errors import ConfigError
from microdit.roles import resolve

if TYPE_CHECKING:
    from microdit.model.config import DiTConfig


@dataclass(frozen=True)
class MaskingConfig:
    """How patches are dropped in training; samplers always see all of them."""

    method: str = "deferred"  # none | naive | deferred | dotted path of a Masking class
    ratio: float = 0.75  # share of patches dropped
    block_size: int = 1  # patches are dropped in contiguous blocks of block_size x block_size

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(f"'model.masking.ratio' is {self.ratio}; it must lie in [0, 1)")
        if self.block_size < 1:
            raise ConfigError(f"'model.masking.block_size' is {self.block_size}; it must be at least 1")
        if self.method == "none" and self.ratio != 0:
            raise ConfigError(
                f"'model.masking.method' is none, but 'model.masking.ratio' is {self.ratio}; set the ratio to 0, or "
                "the method to naive or deferred"
            )


@dataclass(frozen=True)
class MaskPlan:
    """Which patches of each image are kept; 0-based patch numbers run row by row."""

    ids_keep: Tensor  # (B, K) int64, the kept patches
    ids_restore: Tensor  # (B, T) int64: patch t is entry ids_restore[t] of [kept, dropped]
    mask: Tensor  # (B, T) float32, 1 where dropped

    def __getitem__(self, rows: slice) -> MaskPlan:
        """The plan of some images of the batch."""
        return MaskPlan(self.ids_keep[rows], self.ids_restore[rows], self.mask[rows])

    def to(self, device: torch.device | str) -> MaskPlan:
        """The plan on another device."""
        return MaskPlan(self.ids_keep.to(device), self.ids_restore.to(device), self.mask.to(device))

    def keep(self, x: Tensor) -> Tensor:
        """Of each image's patches (B, T, V) the kept ones (B, K, V)."""
        return x.gather(1, self.ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def plan_from_keep(ids_keep: Tensor, patches: int) -> MaskPlan:
    """The plan that keeps `ids_keep` (B, K), in that order, of `patches` patches."""
    batch, kept = ids_keep.shape
    mask = torch.ones(batch, patches, device=ids_keep.device).scatter(1, ids_keep, 0.0)
    # Dropped patches follow the kept ones in ascending order; sorting by (mask, number) is stable.
    dropped = mask.argsort(dim=1, stable=True, descending=True)[:, : patches - kept]
    order = torch.cat([ids_keep, dropped], dim=1)
    return MaskPlan(ids_keep, order.argsort(dim=1), mask)


def kept_patches(side: int, ratio: float, block_size: int) -> int:
    """K: int(T (1 - ratio)) single patches, or as many whole blocks. Raises ConfigError where none is left."""
    if side % block_size:
        divisors = [size for size in range(1, side + 1) if side % size == 0]
        nearest = min(divisors, key=lambda size: abs(size - block_size))
        raise ConfigError(
            f"'model.masking.block_size' is {block_size}, which does not divide the grid of {side} x {side} patches; "
            f"the nearest that does is {nearest}"
        )
    blocks = (side // block_size) ** 2
    kept = math.floor(blocks * (1 - ratio) + 1e-9)  # 1 - 0.9 must not lose a patch to rounding
    if kept < 1:
        raise ConfigError(
            f"'model.masking.ratio' is {ratio}, which keeps none of {blocks} blocks of patches; the highest that keeps "
            f"one is {1 - 1 / blocks:g}"
        )
    return kept * block_size**2


def random_plan(batch: int, side: int, ratio: float, block_size: int, generator: torch.Generator) -> MaskPlan:
    """Uniformly random blocks of patches, drawn on the generator's device; kept patches ascend within an image."""
    kept = kept_patches(side, ratio, block_size) // block_size**2
    coarse = side // block_size
    order = torch.rand(batch, coarse**2, generator=generator, device=generator.device).argsort(dim=1)[:, :kept]
    row, column = order // coarse, order % coarse  # (B, kept) each, in blocks
    inside = torch.arange(block_size, device=generator.device)
    rows = (row.unsqueeze(-1) * block_size + inside).unsqueeze(-1)  # (B, kept, b, 1)
    columns = (column.unsqueeze(-1) * block_size + inside).unsqueeze(-2)  # (B, kept, 1, b)
    ids_keep = (rows * side + columns).flatten(1).sort(dim=1).values
    return plan_from_keep(ids_keep, side**2)


class Masking(nn.Module):
    """The role: drops patches before the backbone, fills their place with zeros after the head; the loss skips them.

    A method with parts of its own (say a decoder) makes them in its constructor, `DiTConfig` in hand.
    """

    uses_mixer = False

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config.masking
        self.side = config.side

    @property
    def kept(self) -> int:
        """K, the patches that the backbone sees in training."""
        return kept_patches(self.side, self.config.ratio, self.config.block_size)

    def plan(self, batch: int, generator: torch.Generator) -> MaskPlan | None:
        """A fresh plan, None where nothing is dropped."""
        if self.config.ratio == 0:
            return None
        return random_plan(batch, self.side, self.config.ratio, self.config.block_size, generator)

    def drop(self, x: Tensor, plan: MaskPlan | None) -> Tensor:
        """(B, T, D) -> (B, K, D)."""
        return x if plan is None else plan.keep(x)

    def decode(self, x: Tensor, c: Tensor, y: Tensor, plan: MaskPlan | None) -> Tensor:
        """What happens to tokens between backbone and head, given the condition (B, D) and the caption (B, S, D)."""
        return x

    def restore(self, out: Tensor, plan: MaskPlan | None) -> Tensor:
        """(B, K, V) -> (B, T, V), zeros where patches were dropped."""
        if plan is None:
            return out
        batch, kept, values = out.shape
        filled = torch.cat([out, out.new_zeros(batch, plan.mask.shape[1] - kept, values)], dim=1)
        return filled.gather(1, plan.ids_restore.unsqueeze(-1).expand(-1, -1, values))

    def reduce_error(self, error: Tensor, plan: MaskPlan | None) -> Tensor:
        """Mean over kept patches: (B, T) -> (B,)."""
        if plan is None:
            return error.mean(1)
        keep = 1 - plan.mask
        return (error * keep).sum(1) / keep.sum(1)

    def flops(self, kept: int, text_tokens: int) -> int:
        """FLOPs of `decode`."""
        return 0


class NoMasking(Masking):
    """All patches, no mixer."""


class NaiveMasking(Masking):
    """Patches are dropped as they come (MaskDiT's and MAE's way): the backbone never learns of the others."""


class DeferredMasking(Masking):
    """Patches are dropped after the patch-mixer, so that kept ones know of all (arXiv 2407.15811 section 3)."""

    uses_mixer = True


MASKINGS: dict[str, type[Masking]] = {"none": NoMasking, "naive": NaiveMasking, "deferred": DeferredMasking}


def build_masking(config: DiTConfig) -> Masking:
    """The method that `config` names."""
    return resolve(config.masking.method, MASKINGS, "model.masking.method")(config)
