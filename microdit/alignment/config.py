"""Define the settings of the alignment with a frozen network's patch features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from microdit.common.errors import ConfigError
from microdit.common.limits import NOT_EMPTY, Range, check_settings


@dataclass(frozen=True)
class AlignmentConfig:
    """Configure REPA (arXiv 2410.06940): encoder, aligned block and weight."""

    encoder: str = "none"  # none | efficientnet-lite0 | dinov2 | dotted path of a PatchEncoder class
    block: int | None = None  # backbone block, from 1, whose output is aligned; null: a third of the depth
    weight: Annotated[float, Range(0, 1e12)] = 0.5  # lambda; 0: off
    hidden: Annotated[int | None, Range(1, 1 << 17)] = None  # width of the projector; null: the model's
    # Of dinov2: its file, or a URL to fetch it from; null: the file in torch hub's folder
    weights: Annotated[str | None, NOT_EMPTY] = None

    def __post_init__(self) -> None:
        check_settings("alignment", self)

    def block_of(self, depth: int) -> int:
        """Return the aligned backbone block, counted from 1.

        Args:
            depth: number of backbone blocks.

        Raises:
            ConfigError: if `block` is not in 1 to `depth`.
        """
        block = max(depth // 3, 1) if self.block is None else self.block
        nearest = min(max(block, 1), depth)
        if block != nearest:
            raise ConfigError(
                f"'alignment.block' is {block}, but the backbone's blocks are 1 to {depth} ('model.depth'); the "
                f"nearest is {nearest}"
            )
        return block
