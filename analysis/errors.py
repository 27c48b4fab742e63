"""The errors of a report, meant for the user: a clear sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReportError(Exception):
    """The report can't be made; the message names the store, study or runs, and what would mend it."""


class MixtureError(ReportError):
    """Runs that can't share a table were asked to; the message names what differs and whose it is."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """A hint that ends a message: the closest valid choice, or all of them when none is close."""
    valid = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.55)
    return f"did you mean '{close[0]}'?" if close else "valid choices: " + ", ".join(valid)
