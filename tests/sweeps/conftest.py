"""An empty store made once: sqlite's schema takes MLflow seconds."""

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
    """An empty store of a test's own, under its tmp_path."""
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
