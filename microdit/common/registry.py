"""From a role's name in YAML to the class that plays it: a short name of ours, or a plugin's dotted path.

A dotted path runs code, so it reaches only into `microdit` and into modules that the configuration lists in `plugins`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from microdit.common.errors import ConfigError, nearest

_allowed = {"microdit"}  # modules that dotted paths may name; a process only ever adds to them


def import_plugins(modules: Iterable[str]) -> None:
    """Imports the user's modules, and lets dotted paths name what they and their submodules hold.

    They are looked for in the working directory too. Raises ConfigError naming the module that can't be imported.
    """
    for name in modules:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # last, so that it hides nothing
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"'plugins' names module '{name}', which can't be imported: {error}") from None
        _allowed.add(name)


def check_name(name: str, table: Mapping[str, Any], key: str) -> None:
    """Raises ConfigError where `name` is neither in `table` nor dotted, naming `key` and the nearest valid name."""
    if name not in table and "." not in name:
        raise ConfigError(f"'{key}' is '{name}'; {nearest(name, table)} (or name a class of yours by its dotted path)")


def resolve(name: str, table: Mapping[str, Any], key: str) -> Any:
    """The entry of `table` called `name`, or what the dotted path `name` points at.

    Raises ConfigError naming `key` where there is no such thing, or where its module is not listed in `plugins`.
    """
    check_name(name, table, key)
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in _allowed):
        raise ConfigError(f"'{key}' is '{name}'; to use it, list its module '{module}' in 'plugins'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{key}' is '{name}', which can't be imported: {error}") from None
