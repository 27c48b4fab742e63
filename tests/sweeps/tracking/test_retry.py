"""Test a removed, damaged or forbidden store: waits are reported, and permanent faults fail at once."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from launching import ONE_ARM
from optuna.study import StudyDirection
from sqlalchemy.exc import DatabaseError

import sweeps.tracking.retry
from sweeps.execution.queue.optuna_storage import open_storage
from sweeps.tracking.file_watch import StoreGone
from sweeps.tracking.mlflow_store import Store
from sweeps.tracking.retry import StoreError, is_store_error, with_retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(sweeps.tracking.retry.time, "sleep", made.append)
    return made


def test_a_removed_queue_is_noticed_and_not_created_anew(tmp_path: Path, pauses: list[float]) -> None:
    path = tmp_path / "optuna.db"
    storage = open_storage(f"sqlite:///{path}")
    storage.create_new_study([StudyDirection.MINIMIZE], "kept")
    aside = path.rename(tmp_path / "aside.db")
    with pytest.raises(StoreError, match=rf"{path} is missing.*put it back"):
        with_retries(storage.get_all_studies)
    assert len(pauses) > 1, "it may come back"
    assert not path.exists()
    aside.rename(path)
    assert [study.study_name for study in with_retries(storage.get_all_studies)] == ["kept"]


def test_a_removed_mlflow_store_is_noticed(store: Store, tmp_path: Path, pauses: list[float]) -> None:
    experiment = store.experiment("microdit/x")
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(StoreError, match=r"mlflow.db is missing"):
        store.client.create_run(experiment)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_queue_that_was_replaced_by_an_empty_database_fails_at_once(tmp_path: Path, pauses: list[float]) -> None:
    path = tmp_path / "optuna.db"
    storage = open_storage(f"sqlite:///{path}")
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t (a)")
    with pytest.raises(StoreError, match="emptied or replaced"):
        with_retries(storage.get_all_studies)
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.DatabaseError("database disk image is malformed"), "restore the file from a backup"),
        (sqlite3.DatabaseError("file is not a database"), "restore the file from a backup"),
        (sqlite3.OperationalError("disk I/O error"), "restore the file from a backup"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "make it accessible"),
        (sqlite3.OperationalError("database or disk is full"), "make room"),
    ],
)
def test_what_no_retry_can_fix_fails_at_once(error: Exception, words: str, pauses: list[float]) -> None:
    def call() -> None:
        raise DatabaseError("SELECT 1", None, error) from error

    with pytest.raises(StoreError, match=words):
        with_retries(call)
    assert len(pauses) <= 1


def test_a_damaged_queue_file_is_rejected_at_once(tmp_path: Path, pauses: list[float]) -> None:
    path = tmp_path / "optuna.db"
    storage = open_storage(f"sqlite:///{path}")
    storage.create_new_study([StudyDirection.MINIMIZE], "kept")
    storage.engine.dispose()
    with open(path, "r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff" * (path.stat().st_size - 100))
    with pytest.raises(Exception, match="damaged"):
        open_storage(f"sqlite:///{path}")
    assert not pauses


def test_an_unwritable_folder_is_not_taken_for_a_store(pauses: list[float]) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/home/me/.cache/microdit")
    assert not is_store_error(denied)
    assert is_store_error(StoreGone("x"))
    assert is_store_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(PermissionError):
        with_retries(lambda: (_ for _ in ()).throw(denied))
    assert not pauses


def test_a_cache_that_cannot_be_a_folder_is_named(
    launch: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    blank = f"tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr("sweeps.execution.launch.Store", lambda *_: None)
    assert launch(ONE_ARM, "cache_dir=file/cache", blank) == 2
    error = capsys.readouterr().err
    assert "file/cache" in error
    assert "store" not in error
