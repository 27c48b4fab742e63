"""The errors of a report, meant for the user: a clear sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_MESSAGE_CHARACTERS = 2000
MAX_VALUE_CHARACTERS = 80
MAX_CHOICES_LISTED = 40


class ReportError(Exception):
    """The report can't be made; the message names the store, study or runs, and what would fix it.

    Control characters in it are escaped, and an endless message is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message), MAX_MESSAGE_CHARACTERS))


class MixtureError(ReportError):
    """Runs that can't share a table were asked to; the message names what differs and whose it is."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """Return a hint that ends a message: the closest valid choice, or all of them if none is close."""
    valid = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name)[:MAX_VALUE_CHARACTERS], valid, n=1, cutoff=0.55)
    more = f" and {len(valid) - MAX_CHOICES_LISTED} more" if len(valid) > MAX_CHOICES_LISTED else ""
    return f"did you mean '{close[0]}'?" if close else "valid choices: " + ", ".join(valid[:MAX_CHOICES_LISTED]) + more


def shortened(text: str, most: int = MAX_VALUE_CHARACTERS) -> str:
    """Return `text` with control characters escaped and, if it is longer than `most`, its middle left out."""
    text = "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)
    return text if len(text) <= most else f"{text[: most * 2 // 3]}... ({len(text)} characters) ...{text[-most // 4 :]}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
