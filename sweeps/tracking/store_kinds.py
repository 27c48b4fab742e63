"""Define the two kinds of stores, built by MLflow and by Optuna."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy

from microdit.common.stores.sqlite_uri import sqlite_uri
from sweeps.tracking.sqlite_files import Kind


def _fast_engine(path: Path) -> Any:
    """Return an engine for a file that no other process has open and that is synced when complete."""
    engine = sqlalchemy.create_engine(sqlite_uri(path), poolclass=sqlalchemy.NullPool)

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    return engine


def _mlflow_tables() -> Iterable[str]:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401  # registers the tables

    return set(Base.metadata.tables)


def _migrate_mlflow(migration: str, path: Path) -> None:
    """Apply a function of MLflow's module of database utilities, and check the resulting schema."""
    from mlflow.store.db import utils

    engine = _fast_engine(path)
    getattr(utils, migration)(engine)
    utils._verify_schema(engine)
    engine.dispose()


def _optuna_tables() -> Iterable[str]:
    from optuna.storages._rdb import models

    return set(models.BaseModel.metadata.tables)


def _build_optuna(path: Path) -> None:
    from optuna.storages import RDBStorage

    storage = RDBStorage(sqlite_uri(path), {"poolclass": sqlalchemy.NullPool})
    storage.remove_session()
    storage.engine.dispose()


MLFLOW = Kind(
    "MLflow store",
    _mlflow_tables,
    frozenset({"experiments", "workspaces"}),
    partial(_migrate_mlflow, "_initialize_tables"),
    partial(_migrate_mlflow, "_upgrade_db"),
)
OPTUNA = Kind("Optuna queue", _optuna_tables, frozenset({"version_info"}), _build_optuna)
