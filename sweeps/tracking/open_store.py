"""Open the MLflow store and determine the artifact location of its experiments."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from microdit.common.stores.quiet import quiet_mlflow
from sweeps.tracking.file_watch import watch
from sweeps.tracking.sqlite_files import prepare, upgrade
from sweeps.tracking.store_kinds import MLFLOW
from sweeps.tracking.uris import own_file

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # set by MLflow's servers for their stores
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # whose clients write artifacts themselves


def quiet() -> None:
    """Silence the logs of MLflow and of its database migrations."""
    import mlflow  # noqa: F401  # configures its loggers, so this must come first

    quiet_mlflow(logging.ERROR)


@contextlib.contextmanager
def default_artifacts(location: str | None) -> Iterator[None]:
    """Return a context in which MLflow creates its Default experiment at `location`.

    Without it MLflow uses ./mlruns, and inserts its path into a statement without quoting it.
    """
    before = os.environ.get(ARTIFACT_ROOT)
    if location is not None and before is None:
        os.environ[ARTIFACT_ROOT] = location
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(ARTIFACT_ROOT, None)


def opened(uri: str) -> Any:
    """Return MLflow's client of a store.

    A sqlite file is created, checked or upgraded first.
    """
    import mlflow

    path = own_file(uri)
    if path is not None:
        prepare(path, MLFLOW)
    client = mlflow.MlflowClient(uri)
    try:
        client.search_experiments(max_results=1)  # on a server, creates a fresh store's tables
    except mlflow.MlflowException as error:
        if path is None or "out-of-date database schema" not in str(error):
            raise
        upgrade(path, MLFLOW)
        client.search_experiments(max_results=1)
    if path is not None:
        watch(client._tracking_client.store.engine, path)
    return client


def location_of(uri: str, root: Path, artifacts: str, experiment: str) -> str | None:
    """Return the URI of a new experiment's artifacts.

    MLflow's own default for a database is ./mlruns of the current folder.

    Args:
        uri: URI of the MLflow store.
        root: root folder; artifacts of a database are stored in its mlartifacts/.
        artifacts: a folder or URI for the artifacts of all experiments; "" for the default.
        experiment: name of the experiment.

    Returns:
        The URI, or None if a tracking server chooses it.
    """
    if "://" in artifacts:
        return f"{artifacts.rstrip('/')}/{quote(experiment)}"
    if not artifacts and re.split(r"[:+]", uri)[0] not in DATABASES:
        return None
    return (Path(artifacts or root / "mlartifacts") / experiment).resolve().as_uri()
