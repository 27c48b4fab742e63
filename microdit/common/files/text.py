"""Read captions, prompts, tables and JSON from text files by one set of rules.

- Text is UTF-8, with or without a byte order mark. UTF-16, UTF-32, invalid bytes and NUL characters are rejected.
- A line ends at LF, CR LF or CR. U+2028, U+2029, NEL, VT and FF are ordinary white space inside a line.
- In JSON, escapes for NUL and lone surrogates, repeated keys, NaN, Infinity, and numbers too long for Python are
rejected.
- In a caption each run of white space counts as one blank.

Messages have the file and the line of the fault. A CSV record is identified by its first line.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microdit.common.errors import DataError, MicroditError, named, shown

BYTE_ORDER_MARKS = {  # UTF-32's begin with UTF-16's, so they are first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
MAX_BYTES = 1 << 30  # captions of a large dataset
MAX_PATH_SHOWN = 300  # characters
MAX_INTEGER_DIGITS = 400  # of an integer; a float has at most 309
LINE_END = re.compile(r"\r\n|\n|\r")
BYTE_LINE_END = re.compile(rb"\r\n|\n|\r")
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)  # JSON has backslashes only in strings


def read_text(path: Path, error: type[MicroditError] = DataError, name: str = "", limit: int = MAX_BYTES) -> str:
    """Return the text of a file, without its byte order mark.

    Args:
        path: the file.
        error: class of the exception.
        name: the file's name in messages; by default its path.
        limit: maximum size in bytes.

    Raises:
        error: if the file can't be read, is larger than `limit`, is not UTF-8, or has a NUL character; the message has
            file and line.
    """
    name = name or named(path, MAX_PATH_SHOWN)
    try:
        facts = path.stat()  # before opening: opening a named pipe waits for a writer
        if not stat.S_ISREG(facts.st_mode):
            raise error(f"{name}: is {'a folder' if stat.S_ISDIR(facts.st_mode) else 'a pipe or device'}, not a file")
        if facts.st_size > limit:
            raise error(f"{name}: has {facts.st_size:,} bytes; at most {limit:,} are read")
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{name}: no such file") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        raise error(f"{name}: can't be read ({getattr(problem, 'strerror', None) or problem})") from None
    return decode_text(data, name, error)


def decode_text(data: bytes, name: str, error: type[MicroditError] = DataError) -> str:
    """Return the text of a file's content.

    Args:
        data: the content.
        name: the file's name in messages.
        error: class of the exception.

    Raises:
        error: if the content is not UTF-8 or has a NUL character; the message has the line.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise error(f"{name}, line 1: not UTF-8 text but {encoding}; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        start = problem.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        line = len(BYTE_LINE_END.findall(data, 0, start)) + 1
        raise error(f"{name}, line {line}: not UTF-8 text ({problem.reason}); save the file as UTF-8") from None
    if "\0" in text:
        raise error(f"{name}, line {line_of(text, text.index(chr(0)))}: a NUL character, which is not allowed in text")
    return text


def line_of(text: str, place: int) -> int:
    """Return the number, from 1, of the line that contains a character.

    Args:
        text: the whole text.
        place: index of the character.
    """
    return len(LINE_END.findall(text, 0, place)) + 1


def split_lines(text: str) -> list[str]:
    """Return the lines without their ends.

    A line end at the very end starts no further line.
    """
    lines = LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def collapse_blanks(caption: str) -> str:
    """Return a caption with each run of white space as one blank."""
    return " ".join(caption.split())


def check_characters(text: str, where: str, error: type[MicroditError] = DataError) -> str:
    """Return a text from a table or a command line unchanged.

    Args:
        text: to be checked.
        where: the beginning of the message.
        error: class of the exception.

    Raises:
        error: if the text has a NUL character or a surrogate, which no encoder can read.
    """
    if "\0" in text:
        raise error(f"{where}: the text has a NUL character")
    if SURROGATE.search(text):
        raise error(f"{where}: the text is not valid Unicode (a lone surrogate)")
    return text


def clean_caption(caption: str, where: str, error: type[MicroditError] = DataError) -> str:
    """Return a caption without byte order mark, each run of white space as one blank.

    Args:
        caption: to be checked as by `check_characters`.
        where: the beginning of the message.
        error: class of the exception.
    """
    return collapse_blanks(check_characters(caption, where, error).removeprefix("\ufeff"))


def parse_json(text: str, name: str, line: int = 0, error: type[MicroditError] = DataError) -> Any:
    """Return the value of a JSON text.

    Args:
        text: a whole file, or one of its lines.
        name: the file, for messages.
        line: number of the line; 0: the whole file.
        error: class of the exception.

    Raises:
        error: if the text is not JSON by the rules of this module.
    """

    def fault(place: int, what: str) -> MicroditError:
        if line:
            return error(f"{name}, line {line}: not valid JSON ({what})")
        return error(f"{name}: not valid JSON (line {line_of(text, place)}: {what})")

    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_reject_constant, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as problem:
        raise fault(problem.pos, problem.msg) from None
    except RecursionError:
        raise fault(0, "nested too deeply") from None
    except ValueError as problem:  # from the hooks
        raise fault(0, str(problem)) from None
    if bad := _bad_escape(text):
        raise fault(*bad)
    return value


def read_json(path: Path, error: type[MicroditError] = DataError) -> Any:
    """Return the value of a JSON file.

    Args:
        path: the file.
        error: class of the exception.

    Raises:
        error: if the file can't be read or is not JSON by the rules of this module.
    """
    return parse_json(read_text(path, error), str(path), error=error)


def read_json_object(path: Path, error: type[MicroditError] = DataError) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: the file.
        error: class of the exception.

    Raises:
        error: if the file can't be read or has another value.
    """
    value = read_json(path, error)
    if not isinstance(value, dict):
        raise error(f"{named(path, MAX_PATH_SHOWN)}: must hold a JSON object, got {shown(value)}")
    return value


def json_rows(path: Path, error: type[MicroditError] = DataError) -> Iterator[tuple[int, Any]]:
    """Yield the lines of a JSON Lines file, without blank ones.

    Args:
        path: the file.
        error: class of the exception.

    Yields:
        Line number from 1, and the line's value.
    """
    for line, text in enumerate(split_lines(read_text(path, error)), start=1):
        if text.strip():
            yield line, parse_json(text, str(path), line, error)


def csv_rows(path: Path, error: type[MicroditError] = DataError) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a CSV file, header included, without blank lines.

    Args:
        path: the file.
        error: class of the exception.

    Yields:
        Number of the record's first line from 1, and its fields.
    """
    reader = csv.reader(io.StringIO(read_text(path, error), newline=""), strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, row
            first = reader.line_num + 1
    except csv.Error as problem:
        raise error(f"{path}, line {first}: {problem}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key '{named(name)}' occurs twice in one object")
        found[name] = value
    return found


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{named(word)} is beyond the largest number")
    return value


def _whole(word: str) -> int:
    if len(word) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(word)} digits")
    return int(word)


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _bad_escape(text: str) -> tuple[int, str] | None:
    """Return place and kind of the first invalid escape in valid JSON, or None.

    An escape is invalid if it does not stand for a character.
    """
    high: re.Match[str] | None = None  # a high surrogate whose low one must follow
    for match in ESCAPE.finditer(text):
        code = int(match[1], 16) if match[1] else -1
        low = 0xDC00 <= code < 0xE000
        if high is not None:
            if low and match.start() == high.end():
                high = None
                continue
            break
        if low:
            return match.start(), "an escape for half of a character"
        if code == 0:
            return match.start(), "an escape for the NUL character"
        high = match if 0xD800 <= code < 0xDC00 else None
    return (high.start(), "an escape for half of a character") if high is not None else None
