"""From a plain mapping (YAML, JSON, Hydra) to frozen dataclasses and back, with errors that name the key.

The dataclasses themselves live beside the component that they configure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from microdit.errors import ConfigError, nearest

T = TypeVar("T")


class Settings(Mapping[str, Any]):
    """A mapping of free keys, for classes that the user brings: it can't be changed, and it can be hashed."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(repr(sorted(self._values.items())))

    def __repr__(self) -> str:
        return repr(self._values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def parse(cls: type[T], values: Mapping[str, Any], source: str = "config", path: str = "") -> T:
    """Builds dataclass `cls` from a mapping.

    `source` names the file in messages, `path` the dotted key of this node. Raises ConfigError on an unknown or missing
    key (with the nearest name) and on a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: '{path}' must be a mapping of keys, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{source}: unknown key '{_join(path, str(key))}'; {nearest(key, fields)}")
    arguments = {}
    for name, field in fields.items():
        key = _join(path, name)
        if name in values:
            arguments[name] = _convert(hints[name], values[name], source, key)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{source}: key '{key}' is missing")
    try:
        return cls(**arguments)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(f"{source}:") else f"{source}: {text}") from None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(kind: Any, value: Any, source: str, key: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        return _convert(options[0], value, source, key)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise ConfigError(f"{source}: '{key}' is {value!r}; {nearest(value, choices)}")
    if origin is tuple:
        return _convert_tuple(kind, value, source, key)
    if origin in (dict, Mapping) or kind in (dict, Mapping, Settings) or origin is typing.get_origin(Mapping[str, Any]):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: '{key}' must be a mapping, got {value!r}")
        return Settings(value) if kind is Settings else dict(value)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else parse(kind, value, source, key)  # type: ignore[arg-type]
    if kind is Any:
        return value
    return _convert_scalar(kind, value, source, key)


def _convert_tuple(kind: Any, value: Any, source: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{source}: '{key}' must be a list, got {value!r}")
    inner = typing.get_args(kind)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_convert(inner[0], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    if len(inner) != len(value):
        raise ConfigError(f"{source}: '{key}' must have {len(inner)} entries, got {list(value)!r}")
    return tuple(_convert(t, item, source, f"{key}[{i}]") for i, (t, item) in enumerate(zip(inner, value, strict=True)))


def _convert_scalar(kind: Any, value: Any, source: str, key: str) -> Any:
    if kind is bool:
        ok = isinstance(value, bool)
    elif kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # '1e3' written as a float means 1000 steps
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif kind is float:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
                value = float(value)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif kind is str:
        ok = isinstance(value, str)
    else:
        ok = isinstance(value, kind)
    if not ok:
        raise ConfigError(f"{source}: '{key}' must be {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """The inverse of `parse`: nested plain dicts and lists, ready for YAML or JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets dotted `key` of a nested mapping in place; everything above its leaf must exist."""
    *parents, leaf = key.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[leaf] = value


def override(values: dict[str, Any], words: Sequence[str], source: str = "command line") -> None:
    """Sets `key=value` words (dotted keys, YAML values) in a nested mapping in place; a mapping keeps its other keys.

    Raises ConfigError where a word is none, or its key doesn't exist, naming the nearest that does.
    """
    known = flatten(values, empty=True)
    for word in words:
        key, sep, text = word.partition("=")
        if not sep:
            raise ConfigError(f"{source}: '{word}' is not of the form key=value")
        try:
            value = yaml.load(text, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{source}: '{word}': {' '.join(str(error).split())[:200]}") from None
        for leaf, item in flatten({key: value}, empty=True).items():
            parent = leaf.rpartition(".")[0]
            free = any(leaf.startswith(f"{name}.") for name in known if name.endswith(".options"))
            if leaf not in known and not free:
                namesakes = [name for name in known if name.split(".")[-1] == leaf.split(".")[-1]]
                siblings = [name for name in known if name.rpartition(".")[0] == parent] if parent else []
                raise ConfigError(f"{source}: unknown key '{leaf}'; {nearest(leaf, namesakes or siblings or known)}")
            assign(values, leaf, item)


def flatten(values: Mapping[str, Any], prefix: str = "", empty: bool = False) -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay whole. Empty mappings are left out unless `empty` ones count."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = _join(prefix, str(name))
        inner = isinstance(value, Mapping) and (value or not empty)
        found |= flatten(value, key, empty) if inner else {key: value}
    return found


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Reads one YAML mapping; raises ConfigError for a missing file, bad YAML or a duplicate key, naming the line."""
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, siblings)}" if siblings else ""
        raise ConfigError(f"{path}: no such file{hint}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys")
    return values


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.YAMLError(f"key '{key}' is given twice, again on line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
