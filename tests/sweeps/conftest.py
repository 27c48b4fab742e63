"""Provide an empty folder, a launch in it, and an empty store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.cli import main
from sweeps.tracking.mlflow_store import Store


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its tmp_path, without stores named by the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launch(cache_dir: Path) -> Callable[..., int]:
    """Return a function that launches a study's text at `smoke` scale, unscored, in one worker."""

    def run(study: str, *words: str) -> int:
        Path("mine.yaml").write_text(study)
        own = ["study=mine.yaml", "scale=smoke", "workers=1", "evaluation.samples=0", f"cache_dir={cache_dir}"]
        return main([*own, *words])

    return run


@pytest.fixture(scope="session")
def blank_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty store's file, created once because MLflow takes seconds to create sqlite's schema."""
    folder = tmp_path_factory.mktemp("blank")
    Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    return folder / "mlflow.db"


@pytest.fixture
def store(blank_store: Path, tmp_path: Path) -> Store:
    """Return an empty store for one test, under its tmp_path."""
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
