"""An arm's settings as its run recorded them: config.yaml, flattened to dotted keys."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from analysis.io.reading import load_yaml, read_text

NAME = "config.yaml"


class Configs(Mapping[str, Mapping[str, Any]]):
    """The config.yaml of runs with dotted keys, each read when it is asked for; empty where a run left none.

    Args:
        places: run ids to the URIs of their artifacts.
    """

    def __init__(self, client: Any, places: Mapping[str, str]) -> None:
        self._client, self._places = client, places
        self._read: dict[str, Mapping[str, Any]] = {}

    def __getitem__(self, run_id: str) -> Mapping[str, Any]:
        place = self._places[run_id]
        if run_id not in self._read:
            self._read[run_id] = read_config(self._client, run_id, place)
        return self._read[run_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_config(client: Any, run_id: str, place: str = "") -> dict[str, Any]:
    """A run's config.yaml with dotted keys; empty where the run left none. `place`: URI of its artifacts."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            local = local_folder(place)
            path = local / NAME if local else Path(client.download_artifacts(run_id, NAME, folder))
            values = load_yaml(read_text(path), NAME)
            return flatten(values) if isinstance(values, Mapping) else {}
    except Exception:  # no such artifact: each artifact store has its own exception for it
        return {}


def local_folder(place: str) -> Path | None:
    """The folder of a file: URI; None of any other. MLflow takes 20 ms to find a local file, opening it none."""
    parts = urlparse(place)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" and not parts.netloc else None


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
    if not (place.isascii() and place.isdigit() and len(place) < 10) or parent not in settings:
        return None
    values = settings[parent]
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return _plain(values[int(place)]) if isinstance(values, list | tuple) and int(place) < len(values) else None


def loosely_equal(have: Any, wanted: Any) -> bool:
    """Equal as numbers, or as words whatever their case."""
    try:
        return abs(float(have) - float(wanted)) < 1e-9
    except (TypeError, ValueError, OverflowError):
        return str(have).lower() == str(wanted).lower()


def _plain(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value
