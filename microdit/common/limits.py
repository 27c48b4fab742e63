"""Declare which values a setting allows, and check them in one place.

The declaration is an annotation of the setting:

    @dataclass(frozen=True)
    class MixerConfig:
        depth: Annotated[int, Range(0, 4096)] = 4
        width: Annotated[int | None, Range(1)] = None

        def __post_init__(self) -> None:
            check_settings("model.mixer", self)

Upper bounds are far above any machine's capacity: they prevent a typing error from filling the memory or running for
days.
"""

from __future__ import annotations

import os
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union

from microdit.common.errors import ConfigError, named, nearest, shown

MAX_NAME_BYTES = 255  # of one part of a path, on all common file systems
NOT_EMPTY = "not empty"  # mark of a text that may be null but not ""


@dataclass(frozen=True)
class Range:
    """Declare the allowed numbers of a setting.

    The ends `least` and `most` are included, the ends `above` and `below` excluded. None means no limit.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return value == value and all(  # NaN is in no range
            (
                self.least is None or value >= self.least,
                self.most is None or value <= self.most,
                self.above is None or value > self.above,
                self.below is None or value < self.below,
            )
        )

    def __str__(self) -> str:
        ends = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {_printed(end)}" for words, end in ends if end is not None)

    def check(self, label: str, value: float, alternative: str = "") -> None:
        """Check one number.

        Args:
            label: what the message calls it: a quoted key or an option.
            value: the number.
            alternative: appended to the message, as in ", or null".

        Raises:
            ConfigError: if `value` is outside the range or NaN.
        """
        if value not in self:
            raise ConfigError(f"{label} is {shown(value)}; it must be {self}{alternative}")


def check_settings(path: str, config: object) -> None:
    """Check each field of a dataclass against its annotation.

    Annotations are `Range`, `NOT_EMPTY` and `Literal`.

    Args:
        path: dotted key of `config` for messages, "" for the root, or "--" if its fields are options of a command.
        config: an instance of a dataclass; None is allowed wherever the annotation allows it.

    Raises:
        ConfigError: if a value is not allowed; the message has key, value and allowed values.
    """
    for name, (marks, choices, optional) in _rules(type(config)).items():  # type: ignore[arg-type]
        value = getattr(config, name)
        if value is None and optional:
            continue
        label = f"--{name.replace('_', '-')}" if path == "--" else f"'{path}.{name}'" if path else f"'{name}'"
        if value in choices:
            continue
        if choices and not marks:
            raise ConfigError(f"{label} is {shown(value)}; {nearest(value, choices)}")
        for mark in marks:
            if isinstance(mark, Range):
                mark.check(label, value, ", or null" if optional and path != "--" else "")
            elif mark is NOT_EMPTY and value == "":
                raise ConfigError(f"{label} is empty; leave it out for the default")


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the evaluated annotations of a dataclass, `Annotated` marks included."""
    return typing.get_type_hints(cls, include_extras=True)


@cache
def _rules(cls: type) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...], bool]]:
    """Return the rules of all fields that have any.

    A rule is the field's marks, the choices of its Literal, and whether None is allowed.
    """
    rules = {}
    for name, kind in field_types(cls).items():
        marks: tuple[Any, ...] = ()
        if typing.get_origin(kind) is Annotated:
            kind, *rest = typing.get_args(kind)
            marks = tuple(rest)
        inner = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
        choices = tuple(c for each in inner if typing.get_origin(each) is Literal for c in typing.get_args(each))
        if marks or choices:
            rules[name] = (marks, choices, type(None) in inner)
    return rules


def _printed(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def check_path(key: str, path: str | None) -> None:
    """Check that a path has no part that is too long for a file system.

    Args:
        key: the setting that holds the path, for the message.
        path: None is allowed.

    Raises:
        ConfigError: if a part has more than 255 bytes.
    """
    longest = max((len(os.fsencode(part)) for part in (path or "").split("/")), default=0)
    if longest > MAX_NAME_BYTES:
        raise ConfigError(
            f"'{key}' is '{named(path)}', which has a name of {longest:,} bytes; at most {MAX_NAME_BYTES} are possible"
        )
