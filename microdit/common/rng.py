"""Every random number of the project comes from here: a stream is named by (seed, stream, step).

No generator is kept between steps, so a resumed run draws exactly what an uninterrupted one would, and two arms of a
study that share a seed share data order, noise and masks, whatever else differs between them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed from (seed, stream, step); streams of different names are independent."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def hash_to_unit_interval(seed: int, name: object) -> float:
    """Where `name` falls in [0, 1), evenly, whatever other names there are: a side of a split that never moves."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def generator(seed: int, stream: str, step: int = 0) -> torch.Generator:
    """A CPU generator: the numbers are the same whatever device they are moved to afterwards."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, stream, step))


def numpy_generator(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """The same for numpy; PCG64 is bit-identical over platforms."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, stream, step)))
