"""Test a moved or copied runs/: artifacts are found, and tags and queue name the new location."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
import yaml
from launching import ONE_ARM
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from microdit.common.stores.run_search import search_runs, where
from microdit.common.stores.sqlite_uri import sqlite_uri
from sweeps.cli import main
from sweeps.execution.queue.trial_queue import open_queue

NAME = 'a place, it\'s #1 (50%)? "new" dîr {x}'  # every kind of character that URIs and filters treat differently


def forget() -> None:
    """Clear MLflow's per-process caches: open files, and artifact locations."""
    _artifact_repos_cache.clear()
    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / NAME
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(ONE_ARM)
    return folder


@pytest.mark.slow
def test_a_project_with_any_name_works_and_can_be_moved(
    study: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from analysis.cli import main as report

    own = [f"cache_dir={cache_dir}", "scale=smoke", "evaluation.samples=0"]
    words = ["study=mine.yaml", "workers=1", *own]
    assert main(words) == 0
    assert main(["train", *own, 'output_dir=it\'s "here" #1?']) == 0
    capfd.readouterr()
    assert main(["train", *own, 'output_dir=it\'s "here" #1?']) == 0
    assert "finished before" in capfd.readouterr().out
    assert report(["mine", "out=results"]) == 0
    assert main(["status", "study=mine", "scale=smoke"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME], "nothing beside the project's folder"
    assert sorted(path.name for path in study.iterdir()) == ['it\'s "here" #1?', "mine.yaml", "results", "runs"]

    moved = tmp_path / "moved to 100%"
    shutil.move(study, moved)
    monkeypatch.chdir(moved)
    capfd.readouterr()
    assert report(["mine", "out=results"]) == 2
    assert "microdit-sweep relocate" in capfd.readouterr().err
    assert main(["relocate"]) == 0
    assert f"{study}/runs -> {moved}/runs" in capfd.readouterr().out
    assert main(["relocate"]) == 0
    assert "up to date" in capfd.readouterr().out
    forget()
    client = mlflow.MlflowClient(sqlite_uri(moved / "runs" / "mlflow.db"))
    experiment = client.get_experiment_by_name("microdit/mine")
    [run] = search_runs(client, [experiment.experiment_id], {"microdit.role": "trial"})
    assert "config.yaml" in [item.path for item in client.list_artifacts(run.info.run_id)]
    for tag in ("output_dir", "log", "rerun"):
        assert str(moved) in run.data.tags[f"microdit.{tag}"]
        assert str(study) not in run.data.tags[f"microdit.{tag}"]
    folder = Path(run.data.tags["microdit.output_dir"])
    assert yaml.safe_load((folder / "config.yaml").read_text())["output_dir"] == str(folder)
    queue = open_queue(sqlite_uri(moved / "runs" / "optuna.db"), "mine/smoke/")
    assert queue is not None
    [trial] = queue.latest().values()
    assert trial.user_attrs["config"]["output_dir"] == str(folder)
    capfd.readouterr()
    assert report(["mine", "out=results"]) == 0
    assert main(words) == 0
    assert "1 finished before" in capfd.readouterr().err


def test_filters_hold_any_value() -> None:
    assert where({"a": "it's"}, "FINISHED") == "tags.`a` = \"it's\" and attributes.status = 'FINISHED'"
    assert where({"a": 'it\'s "both"', "b": "x"}) == "tags.`b` = 'x'"


def test_a_search_compares_what_a_filter_cannot_express(blank_store: Path, tmp_path: Path) -> None:
    shutil.copy(blank_store, tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    values = ["plain", "it's", 'say "x"', "both ' and \"", "both ' or \"", "50%", "a\\", "new\nline", "é", "{x}", "`"]
    made = {value: client.create_run("0", tags={"k": value}).info.run_id for value in values}
    for value, run_id in made.items():
        assert [run.info.run_id for run in search_runs(client, ["0"], {"k": value}, most=1)] == [run_id]


@pytest.mark.parametrize("word", ["root=runs\udcff", "cache_dir=/tmp/\udcff", "tracking_uri=sqlite:////tmp/a?b/c.db"])
def test_what_no_store_can_hold_is_rejected_at_once(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "scale=smoke", word]) == 2
    error = capsys.readouterr().err
    assert any(words in error for words in ("aren't UTF-8", "write a path's '?' as %3F"))
    assert not list(tmp_path.iterdir())
