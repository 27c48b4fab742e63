"""The number of patches that a mask keeps.

T patches, K kept patches, G patches per side (T = G * G), b patches per side of a block.
"""

from __future__ import annotations

import math

from microdit.common.errors import ConfigError


def kept_patches(side: int, ratio: float, block_size: int) -> int:
    """Return K: int(T (1 - ratio)) single patches, or as many whole blocks.

    Args:
        side: G.
        ratio: share of dropped patches, in [0, 1).
        block_size: b.

    Raises:
        ConfigError: if the blocks do not divide the grid, or none is kept.
    """
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
