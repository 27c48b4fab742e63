"""An arm's settings as its run recorded them: config.yaml, flattened to dotted keys."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_config(client: Any, run_id: str) -> dict[str, Any]:
    """A run's config.yaml with dotted keys; empty where the run left none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(run_id, "config.yaml", folder))
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except Exception:  # no such artifact: each artifact store has its own exception for it
            return {}
    return flatten(values) if isinstance(values, Mapping) else {}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """The value of `key`, a number where it reads as one, None where it isn't there.

    `optimizer.betas.1` is the second element of a list, which MLflow's parameters hold as words.
    """
    if key in settings:
        return _plain(settings[key])
    parent, _, place = key.rpartition(".")
    if not place.isdigit() or parent not in settings:
        return None
    values = settings[parent]
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError):
            return None
    return _plain(values[int(place)]) if isinstance(values, list | tuple) and int(place) < len(values) else None


def same(have: Any, wanted: Any) -> bool:
    """Equal as numbers, or as words whatever their case."""
    try:
        return abs(float(have) - float(wanted)) < 1e-9
    except (TypeError, ValueError):
        return str(have).lower() == str(wanted).lower()


def _plain(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
