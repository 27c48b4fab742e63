"""Opens an MLflow store to read, without ever making one."""

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
from microdit.common.stores.secrets import masked, remember
from microdit.common.stores.sqlite_uri import sqlite_path, sqlite_uri

MAKE_ONE = "microdit-sweep study=masking_ratio scale=demo makes one"


def short_error(error: Exception) -> str:
    """What an error of a store says, in a line without passwords, SQL and what a statement was to write."""
    words = masked(" ".join(str(error).split()).partition(" [SQL:")[0])
    return words[:200] or type(error).__name__


def quiet() -> None:
    """MLflow and its database layer log every migration they look at, and with a traceback what they then raise; a
    user's terminal is for the report."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's 7 make a dead server a wait of 4 minutes
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, or the sqlite file that `microdit-sweep` writes below the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _uri(Path("runs/mlflow.db"))


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI, None for other URIs and for a database in memory."""
    try:
        return sqlite_path(uri)
    except ValueError as error:
        raise ReportError(f"tracking_uri={masked(uri)}: {error}") from None


def _uri(path: Path) -> str:
    try:
        return sqlite_uri(path.resolve())
    except ValueError as error:
        raise ReportError(str(error)) from None


@contextlib.contextmanager
def sqlite_connection(client: Any) -> Iterator[sqlite3.Connection | None]:
    """The sqlite file behind `client`, opened to read; None for a store of another kind.

    MLflow's client makes an object of every run and point, which for thousands of runs takes minutes. Whoever reads
    the tables instead falls back to the client on sqlite3.Error: MLflow may arrange them in another way one day.
    """
    file = sqlite_file(str(getattr(client, "tracking_uri", "")))
    if file is None or not file.is_file():
        yield None
        return
    with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", timeout=60, uri=True)) as database:
        yield database


def open_store(uri: str) -> Any:
    """An `MlflowClient` of `uri`; a path ending in .db is taken for a sqlite file.

    Raises ReportError where there is no store: opening a missing sqlite file would create an empty one.
    """
    remember(uri)
    if "://" not in uri and uri.endswith(".db"):
        uri = _uri(Path(uri))
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise ReportError(f"there is no MLflow store at {file}; {MAKE_ONE}, tracking_uri=URI names another")
    if "://" not in uri and not Path(uri).is_dir():
        raise ReportError(f"tracking_uri={uri} is neither a URI nor a folder; e.g. sqlite:////data/mlflow.db")
    quiet()
    import mlflow

    quiet()  # importing mlflow sets its own level
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        # Of sqlite's journals one, WAL, needs a file beside the store even to read.
        hint = "; a copy of it in a folder that can be written will do" if file and "readonly" in str(error) else ""
        raise ReportError(f"tracking_uri={masked(uri)} can't be opened: {short_error(error)}{hint}") from None
    return client
