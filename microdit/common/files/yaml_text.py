"""Read untrusted YAML with limits on size, nesting and expanded aliases.

`load_yaml` reads what users write, and rejects what they can't mean. `load_stored_mapping` reads the files of finished
runs: any plain value, fast, and in much larger documents. Every fault raises the same type of error. See `text.py` for
JSON and text.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

from microdit.common.errors import ConfigError, DataError, MicroditError, named, printable

MAX_YAML_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 50_000  # of one document that a user wrote, aliases expanded
MAX_STORED_BYTES = 16 << 20  # of one file of a finished run
MAX_STORED_NODES = 2_000_000
MAX_INTEGER = 2**63 - 1
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|\\U")
BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
FAST_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed

Kind = type[MicroditError]


def load_yaml(text: str, source: str, kind: Kind = ConfigError) -> Any:
    """Return the one YAML document in a text.

    Args:
        text: at most 1 MiB.
        source: the file, for the message.
        kind: class of the exception.

    Raises:
        kind: if the text is invalid; the message has `source` and the fault.
    """
    if len(text) > MAX_YAML_BYTES:
        raise kind(f"{source}: not valid YAML: has {len(text):,} characters; at most {MAX_YAML_BYTES:,} are read")
    value = _load(text, source, kind, StrictLoader, MAX_NODES)
    if SURROGATE.search(text):  # neither files nor terminals can represent half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            reason = "an escape is half a surrogate pair, which is not a character"
            raise kind(f"{source}: not valid YAML: {reason}") from None
    return value


def load_stored_mapping(text: str, source: str, kind: Kind = DataError) -> dict[str, Any]:
    """Return the YAML mapping in a file of a finished run.

    Args:
        text: at most 2,000,000 values, aliases expanded.
        source: the file, for the message.
        kind: class of the exception.

    Raises:
        kind: if it is not valid YAML, exceeds a limit, is another value, or has a key that is not text.
    """
    values = _load(text, source, kind, FAST_LOADER, MAX_STORED_NODES)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise kind(f"{source}: must hold a mapping of keys")
    return values


def _load(text: str, source: str, kind: Kind, loader: Any, most: int) -> Any:
    try:
        _check_structure(text, most)
        return yaml.load(text, Loader=loader)
    except BROKEN as error:
        raise kind(f"{source}: not valid YAML: {_reason(error)}") from None


def _check_structure(text: str, most: int) -> None:
    """Raise an error if a document is nested too deeply or has more than `most` values.

    An alias counts as many values as it expands to, and must not contain itself.
    """
    sizes: dict[str, int | None] = {}  # anchor -> values below it; None while it is open
    open_nodes: list[tuple[str | None, int]] = []  # enclosing collections: anchor, and the count at their start
    count = 0
    for event in yaml.parse(text, Loader=FAST_LOADER):
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
        if count > most:
            raise ValueError(f"it has more than {most:,} values, aliases expanded")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested too deeply (at most {MAX_DEPTH} levels are read)"
    words = printable(" ".join(str(error).split()))
    if "4300 digits" in words:
        return "an integer has thousands of digits"
    return words[:300] if isinstance(error, (yaml.YAMLError, ValueError)) else f"a value can't be read ({words[:200]})"


class StrictLoader(yaml.SafeLoader):
    """Load YAML restricted to what a configuration needs.

    Repeated keys (the first value would be lost), dates, sets, binary data, Python objects, merge keys, cycles, NaN,
    and integers of more than 64 bits are rejected.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        place = f"on line {node.start_mark.line + 1}"
        if node.tag == "tag:yaml.org,2002:timestamp":
            raise yaml.YAMLError(f"'{named(node.value)}' {place} is a date; put it in quotes to make it text")
        if node.tag not in PLAIN_TAGS:
            raise yaml.YAMLError(f"the tag '{named(node.tag)}' {place} is not allowed; only plain values are allowed")
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError) as error:
            if isinstance(error, yaml.YAMLError):
                raise
            kind = node.tag.rpartition(":")[2]
            raise yaml.YAMLError(
                f"'{named(node.value)}' {place} is not a valid {kind} ({_reason(error)[:80]})"
            ) from None
        # Infinity is accepted; each setting checks it afterwards.
        if isinstance(value, float) and not math.isfinite(value) and "inf" not in node.value.lower():
            raise yaml.YAMLError(f"{named(node.value)} {place} is not a finite number")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise yaml.YAMLError(f"the integer {place} has more than 64 bits")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            place = f"on line {key_node.start_mark.line + 1}"
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"the merge key '<<' {place} is not supported; write the keys out")
            if key_node.tag != "tag:yaml.org,2002:str" or not isinstance(key_node, yaml.ScalarNode):
                what = named(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise yaml.YAMLError(f"the key {what} {place} is not text; put it in quotes")
            if key_node.value in seen:
                raise yaml.YAMLError(f"key '{named(key_node.value)}' is repeated {place}")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
