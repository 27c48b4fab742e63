"""Read the settings of a run from its config.yaml, flattened to dotted keys."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from analysis.errors import ReportError
from microdit.common.contract import CONFIG_FILE
from microdit.common.files.text import read_text
from microdit.common.files.yaml_text import MAX_STORED_BYTES, load_stored_mapping
from microdit.common.parsing import flatten

TOLERANCE = 1e-9  # within which two numbers are equal
MAX_INDEX_DIGITS = 9  # of a list's element in a key


class Configs(Mapping[str, Mapping[str, Any]]):
    """Map run ids to settings by dotted key, each read on first use.

    A run without config.yaml has none.

    Args:
        client: MLflow's client of the store.
        places: URI of the artifacts of each run.
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
    """Return a run's settings by dotted key, empty if it has no readable config.yaml.

    Args:
        client: MLflow's client of the store.
        run_id: the run.
        place: URI of the run's artifacts; "" asks the client.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            local = local_folder(place)
            path = local / CONFIG_FILE if local else Path(client.download_artifacts(run_id, CONFIG_FILE, folder))
            text = read_text(path, ReportError, limit=MAX_STORED_BYTES)
            return flatten(load_stored_mapping(text, CONFIG_FILE, ReportError))
    except Exception:  # no such artifact: the exception depends on the artifact store
        return {}


def local_folder(place: str) -> Path | None:
    """Return the folder of a file: URI, None for any other URI.

    Reading it directly saves the 20 ms per file that MLflow's client takes.
    """
    parts = urlparse(place)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, as a float if possible; None if it is missing.

    Args:
        settings: values by dotted key. MLflow's params store lists as text.
        key: dotted; `optimizer.betas.1` is the second element of a list.
    """
    if key in settings:
        return _as_number(settings[key])
    parent, _, index = key.rpartition(".")
    if not (index.isascii() and index.isdigit() and len(index) <= MAX_INDEX_DIGITS) or parent not in settings:
        return None
    values = settings[parent]
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return _as_number(values[int(index)]) if isinstance(values, list | tuple) and int(index) < len(values) else None


def loosely_equal(have: Any, wanted: Any) -> bool:
    """Return whether two values are equal as numbers, or else as text in any case.

    Args:
        have: a value, which may be text from MLflow.
        wanted: the other value.
    """
    try:
        return abs(float(have) - float(wanted)) < TOLERANCE
    except (TypeError, ValueError, OverflowError):
        return str(have).lower() == str(wanted).lower()


def _as_number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value
