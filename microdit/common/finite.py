"""Reject NaN and infinity before they are stored or printed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from microdit.common.errors import DivergenceError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = sys.float_info.max  # what MLflow's sqlite store returns for infinity


def is_sound(value: float | None) -> bool:
    """Return whether a metric is finite, and not a store's substitute for infinity.

    Args:
        value: None is not sound.
    """
    return value is not None and -LARGEST < float(value) < LARGEST


def unsound(values: Mapping[str, float]) -> str:
    """Return the first metric that is not finite, such as `final/fd is nan`.

    Args:
        values: names and values of metrics.

    Returns:
        "" if all are finite.
    """
    return next((f"{name} is {value}" for name, value in values.items() if not is_sound(value)), "")


def require_sound(values: Mapping[str, float], where: str) -> Mapping[str, float]:
    """Return `values` if all are finite.

    Args:
        values: names and values of metrics.
        where: place or step, for the message.

    Raises:
        DivergenceError: if a value is not finite; the message has the metric and `where`.
    """
    found = unsound(values)
    if found:
        raise DivergenceError(f"{found} {where}: only finite numbers are recorded")
    return values


def require_finite(x: Tensor, what: str) -> Tensor:
    """Return `x` if it is finite.

    Args:
        x: a tensor whose first dimension counts images.
        what: what the images are, for the message.

    Returns:
        The same tensor.

    Raises:
        DivergenceError: if it has NaN or infinity.
    """
    bad = ~x.isfinite().flatten(1).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise DivergenceError(
            f"{int(bad.sum())} of {len(x)} {what} are not finite (NaN or infinity), the first is {first}"
        )
    return x
