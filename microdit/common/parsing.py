"""Convert plain mappings (YAML, JSON, Hydra) to frozen dataclasses and back.

The dataclasses are defined beside the components that they configure. Errors name the key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from microdit.common.errors import MAX_VALUE_CHARACTERS, ConfigError, named, nearest, shown
from microdit.common.files.text import read_text
from microdit.common.files.yaml_text import MAX_INTEGER, MAX_YAML_BYTES, load_yaml
from microdit.common.limits import field_types

T = TypeVar("T")

MAX_TEXT_CHARACTERS = 4096  # of a setting; also the longest path on Linux
MAX_PATH_SHOWN = 300  # characters of a path in a message
MAX_LEVELS = 32  # nested lists and mappings in a free setting
OPTIONS_KEY = "options"  # of the mappings to which keys may be added
CLOSE_NAME = 0.75  # similarity above which a file is suggested for a missing one

_MAY_BE_INFINITE = "may be infinite"
InfiniteFloat = Annotated[float, _MAY_BE_INFINITE]  # a setting that may be infinite, but not NaN


class FrozenOptions(Mapping[str, Any]):
    """Hold free keys for a user's classes, immutable and hashable."""

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


def parse(cls: type[T], values: Mapping[str, Any], source: str = "config", path: str = "") -> T:
    """Build a dataclass from a mapping.

    Args:
        cls: the dataclass.
        values: its keys and values.
        source: the file, for messages.
        path: the dotted key of this node, for messages.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: if a key is unknown (suggests the nearest) or missing, a value has the wrong type, or a number is
            not finite.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: '{path}' must be a mapping of keys, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = field_types(cls)  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"{source}: unknown key '{_join(path, named(key))}'; {nearest(key, fields)}")
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


def _convert(kind: Any, value: Any, source: str, key: str, infinite: bool = False) -> Any:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        kind, *marks = typing.get_args(kind)
        return _convert(kind, value, source, key, _MAY_BE_INFINITE in marks)
    if origin in (Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        for option in options[1:]:  # such as int | Literal["auto"]
            if typing.get_origin(option) is Literal and isinstance(value, str):
                return _convert(option, value, source, key)
        return _convert(options[0], value, source, key)
    if origin is Literal:
        choices = typing.get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        raise ConfigError(f"{source}: '{key}' is {shown(value)}; {nearest(value, choices)}")
    if origin is tuple:
        return _convert_tuple(kind, value, source, key)
    if origin in (dict, Mapping) or kind in (dict, Mapping, FrozenOptions):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: '{key}' must be a mapping, got {shown(value)}")
        _check_free(value, source, key)
        return FrozenOptions(value) if kind is FrozenOptions else dict(value)
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else parse(kind, value, source, key)  # type: ignore[arg-type]
    if kind is Any:
        _check_free(value, source, key)
        return value
    return _convert_scalar(kind, value, source, key, infinite)


def _convert_tuple(kind: Any, value: Any, source: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{source}: '{key}' must be a list, got {shown(value)}")
    inner = typing.get_args(kind)
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_convert(inner[0], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    if len(inner) != len(value):
        raise ConfigError(f"{source}: '{key}' must have {len(inner)} entries, got {shown(list(value))}")
    return tuple(_convert(t, item, source, f"{key}[{i}]") for i, (t, item) in enumerate(zip(inner, value, strict=True)))


def _convert_scalar(kind: Any, value: Any, source: str, key: str, infinite: bool) -> Any:
    given = value
    if kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 1e3, which YAML reads as a float, means 1000 steps
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif kind is float:
        if isinstance(value, str) and len(value) <= MAX_VALUE_CHARACTERS:
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
                value = float(value)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        ok = isinstance(value, kind)
    if not ok:
        raise ConfigError(f"{source}: '{key}' must be {getattr(kind, '__name__', kind)}, got {shown(given)}")
    _check_value(value, source, key, infinite)
    return float(value) if kind is float else value


def _check_value(value: Any, source: str, key: str, infinite: bool = False) -> None:
    """Check the size of a number or text.

    Raises:
        ConfigError: if a number is not finite or has more than 64 bits, or a text is too long.
    """
    if isinstance(value, float) and not math.isfinite(value) and not (infinite and value > 0):
        raise ConfigError(f"{source}: '{key}' is {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError(f"{source}: '{key}' is {shown(value)}, an integer of more than 64 bits")
    if isinstance(value, str) and (len(value) > MAX_TEXT_CHARACTERS or "\0" in value):
        what = "a null character" if "\0" in value else f"{len(value):,} characters, at most {MAX_TEXT_CHARACTERS:,}"
        raise ConfigError(f"{source}: '{key}' is {shown(value)}, which has {what}")


def _check_free(value: Any, source: str, key: str, level: int = 0) -> None:
    """Check that a free value consists of finite numbers, text, lists and mappings.

    Raises:
        ConfigError: if it does not.
    """
    if level > MAX_LEVELS:
        raise ConfigError(f"{source}: '{key}' is nested too deeply; at most {MAX_LEVELS} levels are read")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ConfigError(f"{source}: '{key}' has the key {shown(name)}, which is not text; put it in quotes")
            _check_free(item, source, _join(key, named(name)), level + 1)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_free(item, source, f"{key}[{i}]", level + 1)
    elif value is None or isinstance(value, (bool, int, float, str)):
        _check_value(value, source, key)
    else:
        raise ConfigError(f"{source}: '{key}' is {shown(value)}; only numbers, text, lists and mappings are allowed")


def check_finite(config: Any, source: str = "config", path: str = "") -> None:
    """Check all numbers in a dataclass.

    Args:
        config: an instance of a dataclass.
        source: the file, for messages.
        path: the dotted key of `config`, for messages.

    Raises:
        ConfigError: if a number is not finite; the message has its key.
    """
    hints: dict[str, Any] = field_types(type(config))  # type: ignore[arg-type]
    for field in dataclasses.fields(config):
        key, value = _join(path, field.name), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_finite(value, source, key)
        elif isinstance(value, float):
            marks = [mark for kind in (hints[field.name], *typing.get_args(hints[field.name])) for mark in _marks(kind)]
            _check_value(value, source, key, _MAY_BE_INFINITE in marks)
        elif isinstance(value, (tuple, Mapping)):
            _check_free(value, source, key)


def _marks(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ()


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain dicts and lists; the inverse of `parse`."""
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
    """Set a dotted key of a nested mapping in place.

    Args:
        values: has all levels above the key's last part.
        key: such as "model.width".
        value: the new value.
    """
    *parents, leaf = key.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[leaf] = value


def override(values: dict[str, Any], words: Sequence[str], source: str = "command line") -> set[str]:
    """Set `key=value` words in a nested mapping in place.

    A mapping as value is merged into the existing one.

    Args:
        values: the settings.
        words: dotted keys with YAML values.
        source: of the words, for messages.

    Returns:
        The dotted keys that were set.

    Raises:
        ConfigError: if a word has another form, or its key doesn't exist; suggests the nearest key.
    """
    given: set[str] = set()
    for word in words:
        key, sep, text = word.partition("=")
        if not sep:
            raise ConfigError(f"{source}: '{named(word)}' is not of the form key=value")
        value = load_yaml(text, f"{source}: '{named(word)}'")
        for leaf, item in flatten({key: value}, empty=True).items():
            check_key(leaf, values, source)
            assign(values, leaf, item)
            given.add(leaf)
    return given


def check_key(key: str, values: Mapping[str, Any], source: str) -> None:
    """Check that nested mappings have a dotted key.

    Keys below an `options` are free.

    Args:
        key: the key of a value or of a mapping.
        values: all settings.
        source: of the key, for messages.

    Raises:
        ConfigError: if it doesn't exist; suggests the nearest key.
    """
    leaves = [leaf.split(".") for leaf in flatten(values, empty=True)]
    known = dict.fromkeys(".".join(leaf[:count]) for leaf in leaves for count in range(1, len(leaf) + 1))
    parent, _, name = key.rpartition(".")
    if key in known or any(f"{parent}.".startswith(f"{node}.") for node in known if node.endswith(f".{OPTIONS_KEY}")):
        return
    namesakes = [node for node in known if node.rpartition(".")[2] == name]
    siblings = [node for node in known if node.rpartition(".")[0] == parent]
    raise ConfigError(f"{source}: unknown key '{named(key)}'; {nearest(key, namesakes or siblings or known)}")


def flatten(values: Mapping[str, Any], prefix: str = "", empty: bool = False) -> dict[str, Any]:
    """Return nested mappings as dotted keys; lists are kept whole.

    Args:
        values: the nested mapping.
        prefix: dotted key of `values`.
        empty: keep empty mappings, which are otherwise omitted.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = _join(prefix, str(name))
        inner = isinstance(value, Mapping) and (value or not empty)
        found |= flatten(value, key, empty) if inner else {key: value}
    return found


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read one YAML mapping.

    Args:
        path: the file.

    Returns:
        Its keys and values.

    Raises:
        ConfigError: if the file is missing, is not a mapping, or is rejected by `microdit.common.files.yaml_text`;
            the message has file and line.
    """
    path = Path(path)
    if not os.path.lexists(path):
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if os.path.isdir(path.parent) else []
        close = difflib.get_close_matches(path.name[:MAX_VALUE_CHARACTERS], siblings, n=1, cutoff=CLOSE_NAME)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"{named(path, MAX_PATH_SHOWN)}: no such file{hint}")
    values = load_yaml(read_text(path, ConfigError, limit=MAX_YAML_BYTES), named(path, MAX_PATH_SHOWN))
    if not isinstance(values, dict):
        raise ConfigError(f"{named(path, MAX_PATH_SHOWN)}: must hold a mapping of keys")
    return values
