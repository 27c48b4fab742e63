"""Test that a password in a storage URI is used to connect, and is neither shown nor stored."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import ONE_ARM

from sweeps.execution.launchers import HydraEngine
from sweeps.tracking.mlflow_store import Store
from sweeps.tracking.uris import QUEUE, TRACKING, exported_to_children, masked, unmask_from_env

SECRET = "s3cr3t"
POSTGRES = f"postgresql://lab:{SECRET}@db.example:5432/optuna"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (POSTGRES, "postgresql://lab:***@db.example:5432/optuna"),
        (
            f"queue_uri={POSTGRES}?sslmode=require",
            "queue_uri=postgresql://lab:***@db.example:5432/optuna?sslmode=require",
        ),
        (f"https://lab:{SECRET}@host", "https://lab:***@host"),
        (f"postgresql://lab:{SECRET}/@:x@host/db", "postgresql://lab:***@host/db"),
        (
            f"postgresql+psycopg://host/db?user=lab&password={SECRET}&a=b",
            "postgresql+psycopg://host/db?user=lab&password=***&a=b",
        ),
        (f"no route to {POSTGRES} (or {POSTGRES})", "no route to {0} (or {0})".format(masked(POSTGRES))),
        ("http://host:5000", "http://host:5000"),
        ("http://head:5000 and a@b", "http://head:5000 and a@b"),
        ("sqlite:////runs/a:b/mlflow.db", "sqlite:////runs/a:b/mlflow.db"),
        ("postgresql://lab@host:5432/db", "postgresql://lab@host:5432/db"),
    ],
)
def test_passwords_are_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown


def test_a_worker_takes_the_password_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = masked(POSTGRES)
    assert unmask_from_env(shown, QUEUE) == "postgresql://lab@db.example:5432/optuna", (
        "PGPASSWORD and ~/.pgpass then apply"
    )
    assert unmask_from_env("https://lab:***@host/mlflow", TRACKING) == "https://host/mlflow"
    assert unmask_from_env("postgresql://h/db?password=***&user=lab", QUEUE) == "postgresql://h/db?user=lab"
    with exported_to_children(POSTGRES, "sqlite:////runs/mlflow.db"):
        assert unmask_from_env(shown, QUEUE) == POSTGRES
    assert unmask_from_env(shown, QUEUE) != POSTGRES, "lent for a time only"
    monkeypatch.setenv(QUEUE, "postgresql://other:x@elsewhere/optuna")
    with exported_to_children(POSTGRES, ""):
        assert unmask_from_env(shown, QUEUE) == POSTGRES
    assert unmask_from_env(shown, QUEUE) == "postgresql://lab@db.example:5432/optuna", (
        "another store's password is not tried"
    )


def test_jobs_of_other_launchers_hold_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs: list[Any] = []

    class Launcher:
        def launch(self, overrides: Any, initial_job_idx: int) -> list[Any]:
            jobs.extend(overrides)
            return []

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_launcher", lambda *_, **__: Launcher())
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    HydraEngine("joblib", tmp_path, []).run(POSTGRES, "study/1", 2, lambda: True)
    assert len(jobs) == 2
    assert SECRET.encode() not in pickle.dumps(jobs)
    assert f"queue.uri='{masked(POSTGRES)}'" in jobs[0]


def test_what_a_launch_keeps_and_prints_holds_no_password(
    launch: Callable[..., int], store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """sqlite has no passwords, but a URI may contain one; every file of the sweep is searched."""
    stores = [f"queue_uri=sqlite:///{tmp_path}/optuna.db", f"tracking_uri={store.uri}"]
    assert launch(ONE_ARM, *(f"{uri}?password={SECRET}" for uri in stores)) == 0
    printed = "".join(capfd.readouterr())
    assert "password=***" in printed
    assert SECRET not in printed
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not holders


@pytest.mark.parametrize("word", ["queue_uri", "tracking_uri"])
def test_messages_hold_no_password(word: str, launch: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(ONE_ARM, f"{word}=nosuch://lab:{SECRET}@host/x") == 2
    printed = capsys.readouterr()
    assert f"{word}=nosuch://lab:***@host/x: can't be opened" in printed.err
    assert SECRET not in printed.out + printed.err
