"""Make a command's output safe for any terminal or pipe.

Every character can be printed, and a closed pipe ends the command quietly.
"""

from __future__ import annotations

import codecs
import os
import sys
import unicodedata
from collections.abc import Callable
from typing import TextIO

PIPE_CLOSED = 141  # exit status that a shell reports for SIGPIPE
FALLBACK = "plain"
PLAIN = {
    "→": "->", "←": "<-", "↑": "^", "↓": "v", "±": "+/-", "×": "x", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∞": "inf", "“": '"', "”": '"', "‘": "'", "’": "'", "σ": "sigma",
    "█": "#", "▏": "|", "│": "|", "•": "*", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip


def safely(main: Callable[[], int]) -> int:
    """Run a program with safe output, and return its exit status.

    Args:
        main: the program; returns the exit status.

    Returns:
        141 if the reader of the output has ended.
    """
    prepare_streams()
    try:
        try:
            return main()
        finally:
            _flush()
    except BrokenPipeError:
        _discard_output()
        return PIPE_CLOSED


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def prepare_streams() -> None:
    """Print characters that the terminal's encoding lacks as plain ASCII."""
    codecs.register_error(FALLBACK, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=FALLBACK)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ascii(character) for character in error.object[error.start : error.end]), error.end


def _ascii(character: str) -> str:
    if character in PLAIN:
        return PLAIN[character]
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return letters or character.encode("ascii", "backslashreplace").decode()


def _discard_output() -> None:
    """Discard the interpreter's own flush at exit, which would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    streams: tuple[TextIO | None, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        try:
            if stream is not None and stream.fileno() >= 0:
                os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError):  # a stream without a file
            continue
