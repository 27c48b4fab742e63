"""Provide an empty store, created once because MLflow takes seconds to create sqlite's schema."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sweeps.tracking.mlflow_store import Store


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blank")
    Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture
def store(blank_store: Path, tmp_path: Path) -> Store:
    """Return an empty store for one test, under its tmp_path."""
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
