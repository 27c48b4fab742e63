"""What goes wrong where a foreign file of weights is opened, and how a message tells it."""

from __future__ import annotations

import pickle

from safetensors import SafetensorError

# All that a damaged, foreign or unreachable file makes the loaders raise. A RecursionError is a RuntimeError.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    ArithmeticError,
    AssertionError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
)


def short(error: Exception, limit: int = 300) -> str:
    """The error's words on one line, with its kind where they are few."""
    words = " ".join(str(error).split())
    return (words if len(words) > 20 else f"{type(error).__name__}: {words}")[:limit]
