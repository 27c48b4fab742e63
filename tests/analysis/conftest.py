"""Provide stores for many tests; MLflow takes seconds to create sqlite's schema."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from report_store import ARMS, SCORES, StudyWriter, final, study_file

from analysis.io.store import quiet


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sqlite file with MLflow's empty tables."""
    from mlflow import MlflowClient

    quiet()
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def fresh(empty_store: Path, tmp_path: Path) -> tuple[str, Path]:
    """Return (uri, folder) of an empty store for one test."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path


@pytest.fixture(scope="session")
def masking_store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a store with a masking study of five arms and three seeds."""
    root = tmp_path_factory.mktemp("masking")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    launch = StudyWriter(uri, root, "masking_ratio", study_file(ARMS, [0, 1, 2]))
    rng = np.random.default_rng(0)
    for number, (name, values) in enumerate(SCORES.items()):
        for seed, value in enumerate(values):
            steps = np.arange(1, 41)
            loss = 0.3 + 0.7 * np.exp(-steps / 8) + 0.03 * number + 0.02 * rng.standard_normal(40)
            curves = {"train/loss": loss.tolist(), "val/loss": (loss[9::10] + 0.02).tolist()}
            curves |= {f"val/loss_q{band}": [(1 + 0.1 * number) * (0.1 * band + 0.01 * seed)] for band in (1, 2, 3, 4)}
            launch.run(name, seed, final(value), curves=curves)
    launch.client.set_terminated(launch.parent, "FINISHED")
    return uri
