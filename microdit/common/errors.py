"""Define errors that a user can cause and fix.

The command line prints each as one sentence, without a traceback.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath

MAX_MESSAGE_CHARACTERS = 2000
MAX_VALUE_CHARACTERS = 80
MAX_CHOICES_LISTED = 40


class MicroditError(Exception):
    """Report an error to the user; base of all errors that a user can fix.

    The message is printable: control characters are escaped, and a very long message is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message)), MAX_MESSAGE_CHARACTERS))


class ConfigError(MicroditError):
    """Report a setting that is unknown, invalid or contradicts another.

    The message has file, key and nearest choice.
    """


class DataError(MicroditError):
    """Report a dataset, image, caption or cached feature that can't be used.

    The message has the file.
    """


class CheckpointError(MicroditError):
    """Report weights or training state that can't be loaded.

    The message lists the entries.
    """


class DivergenceError(MicroditError):
    """Report a loss, gradient, sample or score that is NaN or infinite.

    The message has its name and step.
    """


class StopTraining(Exception):
    """End a run early (pruning); raised by a logger callback, and not an error."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return a hint with the closest valid choice, or all if none is close.

    Args:
        name: the invalid choice.
        choices: the valid ones.

    Returns:
        The end of an error message.
    """
    valid = [str(choice) for choice in choices]
    word = name if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(word[:MAX_VALUE_CHARACTERS], valid, n=1, cutoff=0.55)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid choices: {listed(valid, MAX_CHOICES_LISTED)}"


def listed(items: Sequence[str], most: int) -> str:
    """Return the first items for an error message, and the number of the others.

    Args:
        items: what to list.
        most: items to name.
    """
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def shown(value: object, most: int = MAX_VALUE_CHARACTERS) -> str:
    """Return a value's repr for an error message, printable and shortened.

    Args:
        value: of any type.
        most: characters of the result.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not convert integers of more than 4300 digits
        text = f"<a value of type {type(value).__name__} that is too large to print>"
    return shortened(printable(text), most)


def named(text: object, most: int = MAX_VALUE_CHARACTERS) -> str:
    """Return a key or file name for an error message: unquoted, on one line.

    Args:
        text: a string or path; other values are shown as by `shown`.
        most: characters of the result.
    """
    words = printable(str(text) if isinstance(text, (str, PurePath)) else shown(text))
    return shortened(words.replace("\n", "\\n"), most)


def printable(text: str) -> str:
    """Return `text` with control characters and lone surrogates escaped.

    Line ends, tabs and spaces are kept.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _is_printable(c) else _escaped(c) for c in text)


def shortened(text: str, most: int) -> str:
    """Return `text` without its middle if it is too long.

    Args:
        text: any text.
        most: characters up to which it is returned unchanged.
    """
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}... ({len(text)} characters) ...{text[-(most // 4) :]}"


def _is_printable(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
