"""Reads the YAML and JSON that runs have left: anything wrong is one error, and nothing takes forever.

The analysis shares no code with the core, whose `microdit.common.files.strict_yaml` has the same rules.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import ReportError, shortened

MAX_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_NODES = 2_000_000  # of one document, aliases expanded
LARGEST = 1.7976931348623157e308  # what MLflow's sqlite store returns for infinity
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed
BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def is_sound(value: Any) -> bool:
    """Return whether `value` is a finite number, not one that a store gives in place of infinity."""
    return isinstance(value, (int, float)) and -LARGEST < value < LARGEST


def read_text(path: Path) -> str:
    """Return the text of a regular UTF-8 file; raises ReportError naming it."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_BYTES:
            raise ReportError(f"{path}: is no regular file of at most {MAX_BYTES:,} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def load_yaml(text: str, source: str) -> Any:
    """Return the one YAML document in `text`; raises ReportError naming `source` and what is wrong."""
    try:
        _check_structure(text)
        return yaml.load(text, Loader=LOADER)
    except BROKEN as error:
        raise ReportError(f"{source}: not valid YAML: {_reason(error)}") from None


def load_yaml_mapping(text: str, source: str) -> dict[str, Any]:
    """Return the YAML mapping in `text`; raises ReportError also for any other value or a key that is no text."""
    values = load_yaml(text, source)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ReportError(f"{source}: must hold a mapping of keys")
    return values


def load_json(text: str, source: str) -> Any:
    """Return the JSON value in `text`, whose numbers are finite; raises ReportError naming `source`."""
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair fails
        return value
    except BROKEN as error:
        raise ReportError(f"{source}: not valid JSON: {_reason(error)}") from None


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{shortened(text)} is not a finite number")
    return float(text)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested too deeply (at most {MAX_DEPTH} levels are read)"
    return shortened(" ".join(str(error).split()), 200)


def _check_structure(text: str) -> None:
    """Raise an error if the document is nested too deeply, or its aliases expand to too much or to themselves."""
    sizes: dict[str, int | None] = {}  # anchor -> values below it; None while it is open
    open_nodes: list[tuple[str | None, int]] = []  # of the collections around: anchor, and the count at their start
    count = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 1)
            if size is None:
                raise ValueError("an alias refers to the value that it stands in")
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
        if count > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values, aliases expanded")


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, an empty one if it is missing; raises ReportError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ReportError(f"a mapping is needed, not {shortened(repr(value))}")
    return value
