"""Read YAML of finished runs: fast, bounded, with one kind of error.

`strict_yaml` reads what users write. This module accepts any plain value and much larger documents.
"""

from __future__ import annotations

from typing import Any

import yaml

from microdit.common.errors import DataError, MicroditError, printable, shortened
from microdit.common.files.strict_yaml import BROKEN, MAX_DEPTH

MAX_STORED_BYTES = 16 << 20  # of one file
MAX_STORED_NODES = 2_000_000  # of one document, aliases expanded
MAX_REASON_CHARACTERS = 200
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed


def load_stored_yaml(text: str, source: str, error: type[MicroditError] = DataError) -> Any:
    """Return the one YAML document in a text.

    Args:
        text: at most 2,000,000 values, aliases expanded.
        source: the file, for the message.
        error: class of the exception.

    Raises:
        error: if it is not valid YAML or exceeds a limit.
    """
    try:
        _check_structure(text)
        return yaml.load(text, Loader=LOADER)
    except BROKEN as problem:
        raise error(f"{source}: not valid YAML: {_reason(problem)}") from None


def load_stored_mapping(text: str, source: str, error: type[MicroditError] = DataError) -> dict[str, Any]:
    """Return the YAML mapping in a text.

    Args:
        text: at most 2,000,000 values, aliases expanded.
        source: the file, for the message.
        error: class of the exception.

    Raises:
        error: if it is not valid YAML, is another value, or has a key that is not text.
    """
    values = load_stored_yaml(text, source, error)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise error(f"{source}: must hold a mapping of keys")
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested too deeply (at most {MAX_DEPTH} levels are read)"
    return shortened(printable(" ".join(str(error).split())), MAX_REASON_CHARACTERS)


def _check_structure(text: str) -> None:
    """Raise an error if a document is nested too deeply or too large.

    An alias counts as many values as it expands to, and must not contain itself.
    """
    sizes: dict[str, int | None] = {}  # anchor -> values below it; None while it is open
    open_nodes: list[tuple[str | None, int]] = []  # enclosing collections: anchor, and the count at their start
    count = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 1)
            if size is None:
                raise ValueError("an alias refers to the value that contains it")
            count += size
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((event.anchor, count))
            count += 1
            if event.anchor:
                sizes[event.anchor] = None
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
        if len(open_nodes) > MAX_DEPTH:
            raise RecursionError
        if count > MAX_STORED_NODES:
            raise ValueError(f"it has more than {MAX_STORED_NODES:,} values, aliases expanded")
