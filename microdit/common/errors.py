"""Errors that a user can cause and fix: one clear sentence each, never a traceback at the command line."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath

MAX_MESSAGE_CHARACTERS = 2000
MAX_VALUE_CHARACTERS = 80
MAX_CHOICES_LISTED = 40


class MicroditError(Exception):
    """Base of every error whose message is meant for the user.

    The message is made printable: control characters are escaped and an endless message is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message)), MAX_MESSAGE_CHARACTERS))


class ConfigError(MicroditError):
    """A setting is unknown, impossible or contradicts another; the message names file, key and nearest choice."""


class DataError(MicroditError):
    """A dataset, image, caption or cached feature can't be used; the message names the file."""


class CheckpointError(MicroditError):
    """Weights or training state can't be loaded; the message names the entries."""


class DivergenceError(MicroditError):
    """A loss, gradient, sample or score became NaN or infinite; the message names it, and the step if there is one."""


class StopTraining(Exception):
    """Raised through a recorder by whoever has seen enough of a run (a pruner, say): no failure, no traceback."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return a hint that ends an error message: the closest valid choice, or all of them if none is close."""
    valid = [str(choice) for choice in choices]
    word = name if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(word[:MAX_VALUE_CHARACTERS], valid, n=1, cutoff=0.55)
    if close:
        return f"did you mean '{close[0]}'?"
    more = f" and {len(valid) - MAX_CHOICES_LISTED} more" if len(valid) > MAX_CHOICES_LISTED else ""
    return "valid choices: " + ", ".join(valid[:MAX_CHOICES_LISTED]) + more


def shown(value: object, most: int = MAX_VALUE_CHARACTERS) -> str:
    """Return `value` as an error message shows it: its repr, shortened to `most` characters and printable."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python converts no integer of more than 4300 digits
        text = f"<a value of type {type(value).__name__} that is too large to print>"
    return shortened(printable(text), most)


def named(text: object, most: int = MAX_VALUE_CHARACTERS) -> str:
    """Return a key or file name for an error message, without quotes: shortened and printable."""
    words = printable(str(text) if isinstance(text, (str, PurePath)) else shown(text))
    return shortened(words.replace("\n", "\\n"), most)


def printable(text: str) -> str:
    """Return `text` with control characters and lone surrogates escaped; line ends, tabs and spaces stay."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _is_printable(c) else _escaped(c) for c in text)


def shortened(text: str, most: int) -> str:
    """Return `text`, if longer than `most` characters with its middle left out."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}... ({len(text)} characters) ...{text[-(most // 4) :]}"


def _is_printable(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
