"""Parse numbers of command-line options."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

from microdit.common.errors import shown

MAX_DIGITS = 18  # of a whole number: 63 bits hold them


def whole(least: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers of at most MAX_DIGITS digits.

    Args:
        least: the smallest number that is allowed.

    Returns:
        A function from text to the number; it raises ArgumentTypeError for any other text.

    Raises:
        ArgumentTypeError: by the returned function.
    """

    def parsed(text: str) -> int:
        digits = text.removeprefix("+")
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS and int(digits) >= least):
            raise ArgumentTypeError(
                f"{shown(text)} is not a whole number from {least} with at most {MAX_DIGITS} digits"
            )
        return int(digits)

    return parsed


count = whole(1)
seed = whole(0)


def finite(text: str) -> float:
    """Return a finite number.

    Raises:
        ArgumentTypeError: if the text is not one.
    """
    value = level(text)
    if math.isinf(value):
        raise ArgumentTypeError(f"{shown(text)} is not a finite number")
    return value


def level(text: str) -> float:
    """Return a noise level, which may be infinite.

    Raises:
        ArgumentTypeError: if the text is not a number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ArgumentTypeError(f"{shown(text)} is not a number")
    return value
