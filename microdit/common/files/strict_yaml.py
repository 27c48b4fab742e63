"""Read untrusted YAML with limits on size, nesting and expanded aliases.

Every fault raises the same type of error. Keys must be text. See `text.py` for JSON and text.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import yaml

from microdit.common.errors import ConfigError, MicroditError, named

MAX_YAML_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 50_000  # of one YAML document, aliases expanded
MAX_INTEGER = 2**63 - 1
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|\\U")
BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)

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
    try:
        value = yaml.load(text, Loader=StrictLoader)
        _check_encodable(value, text)
        return value
    except BROKEN as error:
        raise kind(f"{source}: not valid YAML: {_reason(error)}") from None


def _check_encodable(value: Any, text: str) -> None:
    """Raise ValueError if an escape in `text` is a lone surrogate.

    Neither files nor terminals can represent one.
    """
    if SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False, default=str).encode()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested too deeply (at most {MAX_DEPTH} levels are read)"
    if isinstance(error, UnicodeEncodeError):
        return "an escape is half a surrogate pair, which is not a character"
    words = " ".join(str(error).split())
    if "4300 digits" in words:
        return "an integer has thousands of digits"
    return words[:300] if isinstance(error, (yaml.YAMLError, ValueError)) else f"a value can't be read ({words[:200]})"


class StrictLoader(yaml.SafeLoader):
    """Load YAML restricted to what a configuration needs.

    Repeated keys (the first value would be lost), dates, sets, binary data, Python objects, merge keys, cycles, NaN,
    and integers of more than 64 bits are rejected.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._nodes = 0
        self._sizes: dict[int, int] = {}  # id of a composed node -> its nodes, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            target = self.anchors.get(self.peek_event().anchor)  # an unknown anchor is reported below
            if target is not None:
                self._count(self._sizes.get(id(target)))
            return super().compose_node(parent, index)
        before = self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        self._count(1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def _count(self, nodes: int | None) -> None:
        if nodes is None:
            raise yaml.YAMLError("an alias refers to a value that contains it")
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise yaml.YAMLError(f"it has more than {MAX_NODES:,} values, aliases expanded")

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
        if isinstance(value, float) and not math.isfinite(value) and not self.allows_infinity(node):
            raise yaml.YAMLError(f"{named(node.value)} {place} is not a finite number")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise yaml.YAMLError(f"the integer {place} has more than 64 bits")
        return value

    def allows_infinity(self, node: yaml.Node) -> bool:
        """Return whether a non-finite number is accepted here.

        Infinity is accepted; each setting checks it afterwards.
        """
        return "inf" in node.value.lower()

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
