"""Provide all random numbers, in streams identified by (seed, stream, step).

No generator is kept between steps, so a resumed run draws the same numbers as an uninterrupted one. Two arms of a study
with the same seed share data order, diffusion noise and masks, whatever else differs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive_seed(seed: int, stream: str, step: int = 0) -> int:
    """Return a 63-bit seed; streams of different names are independent.

    Args:
        seed: of the run.
        stream: name of the purpose, such as "noise".
        step: of training, or another counter.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def hash_to_unit_interval(seed: int, name: object) -> float:
    """Return a uniform hash in [0, 1).

    A split by this hash is independent of other names.

    Args:
        seed: of the split.
        name: hashed by its str().
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def generator(seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of one stream.

    Args:
        seed: of the run.
        stream: name of the purpose, such as "noise".
        step: of training, or another counter.
        device: draws the numbers. Those of the CPU are the same on every device they are moved to; a GPU draws
            different ones.
    """
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, stream, step))


class RowDraws:
    """Draw the numbers of some rows of a batch.

    They are those that a draw for the whole batch gives to the rows. On a CPU the numbers of other rows are skipped,
    which takes a third of the time of drawing normal ones; torch's generators can't jump ahead.

    Args:
        generator: of the whole batch's stream; nothing else may draw from it.
        batch: rows of the whole batch.
        rows: the rows to draw.

    Attributes:
        count: number of rows to draw.
        device: of the numbers.
    """

    def __init__(self, generator: torch.Generator, batch: int, rows: slice = slice(None)) -> None:
        self._generator, self._batch = generator, batch
        self._start, self._stop, _ = rows.indices(batch)
        self._owed = 0  # numbers to skip before the next draw
        self.count, self.device = self._stop - self._start, generator.device

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers of the uniform distribution over [0, 1).

        Args:
            shape: of a row.

        Returns:
            (count, *shape), float32.
        """
        import torch

        return self._drawn(torch.rand, shape, aligned=True)

    def normal(self, *shape: int) -> Tensor:
        """Return numbers of the standard normal distribution.

        Args:
            shape: of a row.

        Returns:
            (count, *shape), float32.
        """
        import torch

        return self._drawn(torch.randn, shape, aligned=math.prod(shape) % NORMALS_TOGETHER == 0)

    def _drawn(self, draw: Callable[..., Tensor], shape: tuple[int, ...], aligned: bool) -> Tensor:
        _skip(self._generator, self._owed)
        options = {"generator": self._generator, "device": self.device}
        if self.count == self._batch or not aligned or self.device.type != "cpu" or not _can_skip():
            self._owed = 0
            return draw((self._batch, *shape), **options)[self._start : self._stop]
        per_row = math.prod(shape)
        _skip(self._generator, self._start * per_row)
        self._owed = (self._batch - self._stop) * per_row
        return draw((self.count, *shape), **options)


NORMALS_TOGETHER = 16  # torch computes so many normal numbers from as many uniform ones
NUMBERS_SKIPPED_TOGETHER = 1 << 17


def _skip(generator: torch.Generator, numbers: int) -> None:
    """Advance a CPU generator by so many float32 numbers."""
    import torch

    for start in range(0, numbers - 1, NUMBERS_SKIPPED_TOGETHER):  # an int64 advances it by two
        pairs = min(NUMBERS_SKIPPED_TOGETHER, numbers - start) // 2
        torch.empty(pairs, dtype=torch.int64).random_(generator=generator)
    if numbers % 2:
        torch.empty(1, dtype=torch.int32).random_(generator=generator)


@cache
def _can_skip() -> bool:
    """Return whether this version of torch consumes one number of the generator per float32 number."""
    import torch

    for draw in (torch.rand, torch.randn):
        whole = draw((4, NORMALS_TOGETHER), generator=generator(0, "layout"))
        rest = generator(0, "layout")
        _skip(rest, NORMALS_TOGETHER)
        if not torch.equal(draw((3, NORMALS_TOGETHER), generator=rest), whole[1:]):
            return False
    return True


def numpy_generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """Return a generator of numpy; PCG64 is bit-identical on all platforms.

    Args:
        seed: of the run.
        stream: name of the purpose, such as "noise".
        step: of training, or another counter.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(seed, stream, step)))
