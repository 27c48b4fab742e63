"""Open an MLflow store for reading, and never create one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.errors import ReportError
from microdit.common.errors import ConfigError
from microdit.common.stores.quiet import quiet_mlflow
from microdit.common.stores.secrets import masked, remember
from microdit.common.stores.sqlite_uri import sqlite_path, sqlite_uri

HOW_TO_CREATE = "create one with microdit-sweep study=masking_ratio scale=demo, or give another with tracking_uri=URI"
MAX_ERROR_CHARACTERS = 200
SQLITE_TIMEOUT_SECONDS = 60
HTTP_RETRIES = "3"  # MLflow's own 7 wait 4 minutes for a dead server


def short_error(error: Exception) -> str:
    """Return a store's error in one line, without passwords and SQL."""
    words = masked(" ".join(str(error).split()).partition(" [SQL:")[0])
    return words[:MAX_ERROR_CHARACTERS] or type(error).__name__


def quiet() -> None:
    """Silence MLflow and its database layer.

    They log each migration and print tracebacks of errors that they raise.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", HTTP_RETRIES)
    quiet_mlflow(logging.CRITICAL)


def default_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of runs/mlflow.db if it is not set.

    `microdit-sweep` writes that file in the working folder.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri("runs/mlflow.db")


@contextlib.contextmanager
def sqlite_connection(client: Any) -> Iterator[sqlite3.Connection | None]:
    """Open the sqlite file behind an MLflow client for reading.

    MLflow's client creates an object per run and point, which takes minutes for thousands of runs. Callers must fall
    back to the client on sqlite3.Error, because another version of MLflow may have other tables.

    Args:
        client: MLflow's client of the store.

    Yields:
        The connection; None for a store of another kind.
    """
    file = sqlite_path(str(getattr(client, "tracking_uri", "")))
    if file is None or not file.is_file():
        yield None
        return
    address = f"{file.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, timeout=SQLITE_TIMEOUT_SECONDS, uri=True)) as database:
        yield database


def open_store(uri: str) -> Any:
    """Return an `MlflowClient` of a store.

    Args:
        uri: of the store; a path ending in .db is a sqlite file.

    Raises:
        ReportError: if there is no store at `uri` (opening a missing sqlite file would create one), or if it can't be
            opened.
    """
    remember(uri)
    if "://" not in uri and uri.endswith(".db"):
        uri = sqlite_uri(uri)
    try:
        file = sqlite_path(uri)
    except ConfigError as error:
        raise ReportError(f"tracking_uri={masked(uri)}: {error}") from None
    if file is not None and not file.is_file():
        raise ReportError(f"there is no MLflow store at {file}; {HOW_TO_CREATE}")
    if "://" not in uri and not Path(uri).is_dir():
        raise ReportError(f"tracking_uri={uri} is neither a URI nor a folder; e.g. sqlite:////data/mlflow.db")
    quiet()
    import mlflow

    quiet()  # importing mlflow sets its own log level
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        # sqlite's WAL journal needs to write a file next to the store even for reading.
        hint = "; copy the store to a writable folder" if file and "readonly" in str(error) else ""
        raise ReportError(f"tracking_uri={masked(uri)} can't be opened: {short_error(error)}{hint}") from None
    return client
