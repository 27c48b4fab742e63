"""Errors that a user can cause and mend: one clear sentence each, never a traceback at the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MicroditError(Exception):
    """Base of every error whose message is meant for the user."""


class ConfigError(MicroditError):
    """A setting is unknown, impossible or contradicts another; the message names file, key and nearest choice."""


class DataError(MicroditError):
    """A dataset, image, caption or cached feature can't be used; the message names the file."""


class CheckpointError(MicroditError):
    """Weights or training state can't be loaded; the message names the entries."""


class DivergenceError(MicroditError):
    """The loss or a gradient became NaN or infinite; the message names the step and the last good checkpoint."""


class StopTraining(Exception):
    """Raised through a recorder by whoever has seen enough of a run (a pruner, say): no failure, no traceback."""


def nearest(name: object, choices: Iterable[object]) -> str:
    """A hint that ends an error message: the closest valid choice, or all of them when none is close."""
    valid = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.55)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid choices: " + ", ".join(valid)
