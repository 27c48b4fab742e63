"""Change settings of a configuration by their dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microdit.common.parsing import assign, to_mapping
from microdit.config.schema import Config, config_from_mapping


def with_changes(base: Config, changes: Mapping[str, Any]) -> Config:
    """Return `base` with other values at dotted keys."""
    values = to_mapping(base)
    for key, value in changes.items():
        assign(values, key, value)
    return config_from_mapping(values)
