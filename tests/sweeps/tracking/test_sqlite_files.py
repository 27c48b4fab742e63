"""Test that sqlite stores are complete or absent after a kill; unusable ones are rejected at once."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import optuna
import pytest
import sqlalchemy

from microdit.common.errors import ConfigError
from sweeps.execution.queue.optuna_storage import open_storage
from sweeps.tracking.mlflow_store import Store
from sweeps.tracking.sqlite_files import SIDE_FILES, Kind, prepare, rewritten
from sweeps.tracking.store_kinds import MLFLOW, OPTUNA
from sweeps.tracking.uris import sqlite_creation_lock

KILLED = 9


def killed_at(statement: int, work: Callable[[], object]) -> bool:
    """Run `work` in a forked child that dies before its `statement`-th SQL statement; False if it needed fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
        def count(*_: object) -> None:
            nonlocal seen
            seen += 1
            if seen == statement:
                os._exit(KILLED)

        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def copying(kind: Kind, blank: Path) -> Kind:
    """Build a store by copying a complete one, because MLflow takes seconds to create it."""
    return replace(kind, build=lambda path: shutil.copy(blank, path))


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if ".new-" in name]


@pytest.mark.parametrize("statement", [1, 2, 3, 17, 150])
def test_a_killed_creation_of_an_mlflow_store_leaves_nothing_behind(
    statement: int, blank_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    assert killed_at(statement, lambda: prepare(path, MLFLOW))
    assert not path.exists()
    prepare(path, copying(MLFLOW, blank_store))
    assert not leftovers(tmp_path)
    assert mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()[0].name == "Default"


def test_a_killed_creation_of_a_queue_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    statement = 1
    while killed_at(statement, lambda: prepare(path, OPTUNA)):
        assert not path.exists()
        statement += 7
    assert statement > 21
    assert not leftovers(tmp_path)
    assert open_storage(f"sqlite:///{path}").get_all_studies() == []


@pytest.mark.parametrize("statement", [2, 40])
def test_a_store_that_was_half_created_in_place_is_moved_aside(
    statement: int, blank_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mlflow.db"
    killed_at(statement, lambda: MLFLOW.build(path))
    size = path.stat().st_size
    if not size:
        with pytest.raises(ConfigError, match="empty"):
            prepare(path, MLFLOW)
        return
    prepare(path, copying(MLFLOW, blank_store))
    [aside] = tmp_path.glob("mlflow.db.incomplete-*")
    assert aside.name in capsys.readouterr().err
    assert mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()


def half_migrated(path: Path, blank: Path) -> None:
    """Write a store with a run, whose last tables are missing although its revision has them."""
    shutil.copy(blank, path)
    client = mlflow.MlflowClient(f"sqlite:///{path}")
    client.create_run("0")
    client._tracking_client.store.engine.dispose()
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE inputs")
        database.commit()


def test_a_half_migrated_store_with_runs_is_rejected_with_advice_and_left_as_it_is(
    blank_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    half_migrated(path, blank_store)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"was probably interrupted.*backup.*move it aside"):
        Store(f"sqlite:///{path}", tmp_path)
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_an_older_store_is_upgraded_on_a_copy_and_kept(tmp_path: Path) -> None:
    """The older store is made by MLflow's own migrations up to an older revision."""
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    path = tmp_path / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = utils._get_alembic_config(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "acf3f17fdcc7")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (1, 'microdit/old', 'x', 'active')"
        )
        connection.exec_driver_sql(
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, experiment_id) "
            "VALUES ('0123', 'kept', 'me', 'FINISHED', 1, 'active', 1)"
        )
    engine.dispose()
    before = path.read_bytes()
    store = Store(f"sqlite:///{path}", tmp_path)
    assert store.client.get_run("0123").info.status == "FINISHED"
    [kept] = tmp_path.glob("mlflow.db.before-upgrade-*")
    assert kept.read_bytes() == before


@pytest.mark.parametrize("kind", [MLFLOW, OPTUNA], ids=["mlflow", "optuna"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\).*delete it to begin a new store"),
        (b"not a database at all", "not a sqlite database"),
        (b"SQLite format 3\0" + b"x" * 5000, "damaged"),
    ],
)
def test_what_is_no_store_is_rejected_at_once(content: bytes, words: str, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        prepare(path, kind)
    assert path.read_bytes() == content


def test_one_stores_file_is_not_taken_for_the_other(blank_store: Path, tmp_path: Path) -> None:
    shutil.copy(blank_store, tmp_path / "store.db")
    with pytest.raises(ConfigError, match=r"queue_uri=.*another program"):
        open_storage(f"sqlite:///{tmp_path / 'store.db'}")


def test_launchers_that_start_together_create_one_queue(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'optuna.db'}"
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                storage = open_storage(uri)
                storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], f"of {number}")
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert len(open_storage(uri).get_all_studies()) == 4
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_an_mlflow_store_survives_kills_at_many_points_of_its_creation(tmp_path: Path) -> None:
    """Kill every 40th statement of a creation: under a temporary name, and in place as older versions did."""
    for number, statement in enumerate(range(1, 2000, 40)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, uri = folder / "mlflow.db", f"sqlite:///{folder / 'mlflow.db'}"
        killed = killed_at(statement, lambda uri=uri, folder=folder: Store(uri, folder))  # type: ignore[misc]
        assert killed == (not path.exists()) or not leftovers(folder)
        if number % 5 == 0:
            Store(uri, folder)
            assert not leftovers(folder)
        if not killed:
            return
    raise AssertionError("a creation takes more statements than this test expects")


def test_no_journal_is_left_beside_a_new_queue(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    with sqlite_creation_lock(f"sqlite:///{path}"):
        prepare(path, OPTUNA)
    assert not [ending for ending in SIDE_FILES if Path(f"{path}{ending}").exists()]


def test_a_file_is_rewritten_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t AS SELECT 1 AS a")
        database.commit()
    with suppress(RuntimeError), rewritten(path) as copy:
        copy.execute("UPDATE t SET a = 2")
        raise RuntimeError("halfway")
    with rewritten(path) as copy:
        assert copy.execute("SELECT a FROM t").fetchone() == (1,)
        copy.execute("UPDATE t SET a = 3")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT a FROM t").fetchone() == (3,)
    assert os.listdir(tmp_path) == ["x.db"]
