"""Provide all random numbers, in streams identified by (seed, stream, step).

No generator is kept between steps, so a resumed run draws the same numbers as an uninterrupted one. Two arms of a study
with the same seed share data order, diffusion noise and masks, whatever else differs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


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


def numpy_generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """Return a generator of numpy; PCG64 is bit-identical on all platforms.

    Args:
        seed: of the run.
        stream: name of the purpose, such as "noise".
        step: of training, or another counter.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(seed, stream, step)))
