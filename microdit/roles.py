"""From a role's name in YAML to the class that plays it: a short name of ours, or a plugin's dotted path."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from microdit.errors import ConfigError, nearest


def resolve(name: str, table: Mapping[str, Any], key: str) -> Any:
    """The entry of `table` called `name`, or what the dotted path `name` points at.

    Raises ConfigError naming `key` and the nearest valid name. A dotted path is imported, so it must be one that the
    user's own configuration names.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"'{key}' is '{name}'; {nearest(name, table)}, or the dotted path of a class of yours")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"'{key}' is '{name}', which can't be imported: {error}") from None
