"""Set widths of attention and feed-forwards from the first block to the last.

Widths are constant, or grow with depth (layer-wise scaling, arXiv 2407.15811 section 3; OpenELM, arXiv 2404.14619).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.registry import Registry

WidthSchedule = Callable[[float, float, int], list[float]]  # (start, end, depth) -> one ratio per block

FINEST_HIDDEN = 8  # default granularity of hidden widths: fits vector units


@dataclass(frozen=True)
class WidthConfig:
    """Set ratios of the model width, from the first block to the last."""

    schedule: str = "constant"  # constant | layerwise | dotted path of a Schedule
    start: Annotated[float, Range(above=0, most=1024)] = 1.0
    end: Annotated[float, Range(above=0, most=1024)] = 1.0
    # Granularity of the widths; null: head_dim for attention, 8 for feed-forwards.
    multiple_of: Annotated[int | None, Range(1, 1 << 17)] = None

    def check(self, key: str) -> None:
        """Check the settings.

        Args:
            key: their dotted location, for messages.

        Raises:
            ConfigError: if they are impossible.
        """
        check_settings(key, self)
        WIDTH_SCHEDULES.check(self.schedule, f"{key}.schedule")
        if self.schedule == "constant" and self.start != self.end:
            raise ConfigError(
                f"'{key}.schedule' is constant, but '{key}.start' is {self.start} and '{key}.end' is {self.end}; make "
                "them equal, or the schedule layerwise"
            )

    def ratios(self, depth: int) -> list[float]:
        """Return one ratio per block.

        Args:
            depth: number of blocks.
        """
        return WIDTH_SCHEDULES.resolve(self.schedule)(self.start, self.end, depth)


def constant(start: float, end: float, depth: int) -> list[float]:
    """Return `start` for every block.

    Args:
        start: ratio of all blocks.
        end: ignored; `WidthConfig` requires that it equals `start`.
        depth: number of blocks.
    """
    return [start] * depth


def layerwise(start: float, end: float, depth: int) -> list[float]:
    """Return ratios that grow linearly with the block's index.

    Args:
        start: ratio of the first block.
        end: ratio of the last block, and of a single one.
        depth: number of blocks.
    """
    if depth == 1:
        return [end]
    return [start + (end - start) * i / (depth - 1) for i in range(depth)]


WIDTH_SCHEDULES: Registry[WidthSchedule] = Registry(
    "model.*_width.schedule", {"constant": constant, "layerwise": layerwise}
)
register_width_schedule = WIDTH_SCHEDULES.register


def round_up(value: float, multiple_of: int) -> int:
    """Return the smallest positive multiple that is at least int(value).

    Args:
        value: at least 0.
        multiple_of: the granularity.
    """
    return max(-(-int(value) // multiple_of), 1) * multiple_of


def attention_width(width: int, ratio: float, head_dim: int, multiple_of: int | None) -> int:
    """Return the width of queries, keys and values, a whole number of heads.

    Args:
        width: of the model.
        ratio: of the result to `width`; 1 gives `width` itself.
        head_dim: width of a head.
        multiple_of: granularity, a multiple of `head_dim`; None: `head_dim`.
    """
    if ratio == 1:
        return width
    return round_up(width * ratio, multiple_of or head_dim)


def hidden_width(width: int, ratio: float, matrices: int, multiple_of: int | None) -> int:
    """Return the hidden width of a feed-forward.

    A gated feed-forward has three matrices, so its hidden width is two thirds of `width * ratio`. At one ratio all
    kinds have equal parameters and FLOPs, within rounding up to `multiple_of`.

    Args:
        width: of the model.
        ratio: of hidden to model width, for a feed-forward of two matrices.
        matrices: number of matrices of width x hidden that the feed-forward has.
        multiple_of: granularity; None: 8.
    """
    return round_up(width * ratio * 2 / matrices, multiple_of or FINEST_HIDDEN)
