"""Test the content of a recorded run, read through MLflow's client."""

from __future__ import annotations

import base64
import dataclasses
import json
import sqlite3
import zlib
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from microdit.common.errors import DataError
from microdit.config.identity import trial_key
from microdit.config.schema import Config, load_config, save_config
from sweeps.config.study import load_study
from sweeps.planning.trials import Trial, plan_trials
from sweeps.tracking.mlflow_logger import MlflowLogger, RunSpec, near_square
from sweeps.tracking.mlflow_store import Launch, Store
from sweeps.tracking.mlflow_ui import links
from sweeps.tracking.mlflow_views import ARMS_VIEW, SAMPLES_VIEW, SCORES_VIEW
from sweeps.tracking.retry import StoreError

FACTS = {"data_fingerprint": "abc123", "feature_net": "net@1", "device": "cpu", "gflops_per_image": 0.5}
FACTS |= {"versions": "python 3.11, torch 2.14"}
STUDY = """
question: Does it?
arms:
  none: {model.masking.method: none, model.masking.ratio: 0.0}
  default: {}
baseline: none
seeds: [0]
"""


@pytest.fixture
def config(smoke_config: Config, tmp_path: Path) -> Config:
    config = dataclasses.replace(smoke_config, output_dir=str(tmp_path / "out"))
    save_config(config, tmp_path / "out" / "config.yaml")
    return config


def recorder(store: Store, run_id: str | None = None, experiment: str = "microdit/train") -> MlflowLogger:
    tags = {"microdit.arm": "a", "microdit.trial_key": "k"}
    spec = RunSpec(store.experiment(experiment), "a/seed0", tags, {"seed": 0, "optimizer.lr": 0.1}, "microdit-sweep x")
    return MlflowLogger(store.uri, spec, run_id)


def started(store: Store, config: Config) -> MlflowLogger:
    record = recorder(store)
    record.start(config, FACTS)
    return record


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.client.get_metric_history(run_id, name))


def test_a_run_is_recorded_as_the_schema_says(store: Store, config: Config) -> None:
    record = started(store, config)
    for step in (1, 2, 3):
        record.metrics(step, {"train/loss": 1.0 / step, "lr": 0.1})
    record.image(2, "samples", np.full((8, 16, 3), 200, np.uint8))
    record.metrics(3, {"final/fd": 12.5, "cost/seconds": 3.0})
    record.finish("FINISHED")
    run = store.client.get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a/seed0"
    assert run.data.params == {"seed": "0", "optimizer.lr": "0.1"}
    assert history(store, record.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.data.metrics["final/fd"] == 12.5
    tags = run.data.tags
    expected = {"microdit.arm": "a", "microdit.data_fingerprint": "abc123", "microdit.feature_net": "net@1"}
    assert expected.items() <= tags.items()
    assert tags["microdit.command"] == "microdit-sweep x"
    assert tags["microdit.training.steps"] == str(config.training.steps)
    assert tags["microdit.training.batch_size"] == str(config.training.batch_size)
    assert len(tags["microdit.git_commit"]) in (4, 40)  # "none" if there is no repository
    assert tags["microdit.git_dirty"] in ("true", "false")
    assert run.inputs.dataset_inputs[0].dataset.digest == "abc123"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("data_fingerprint", "the data of a/seed0 changed"),
        ("feature_net", "a scoring network or the prompts"),
    ],
)
def test_a_run_whose_data_or_networks_changed_since_its_plan_is_rejected(
    store: Store, config: Config, name: str, what: str
) -> None:
    tags = {"microdit.arm": "a", "microdit.trial_key": "k", f"microdit.{name}": "planned"}
    spec = RunSpec(store.experiment("microdit/train"), "a/seed0", tags, {"seed": 0}, "microdit-sweep x")
    with pytest.raises(DataError, match=what):
        MlflowLogger(store.uri, spec).start(config, FACTS)


def test_images_have_steps_and_the_stored_config_runs_again(store: Store, config: Config, tmp_path: Path) -> None:
    record = started(store, config)
    for step in (2, 4):
        record.image(step, "samples", np.full((8, 16, 3), step, np.uint8))
    record.finish("FINISHED")
    names = [item.path for item in store.client.list_artifacts(record.run_id, "images")]
    for step in (2, 4):  # the form that the image grid of MLflow's pages reads
        assert any(name.startswith(f"images/samples+step+{step}+") and name.endswith(".png") for name in names), names
    path = store.client.download_artifacts(record.run_id, "config.yaml", str(tmp_path))
    assert trial_key(load_config(path)) == trial_key(config)


def test_tiles_are_laid_out_for_a_square_cell() -> None:
    tiles = np.arange(10, dtype=np.uint8).repeat(2 * 2 * 3).reshape(10, 2, 2, 3)
    picture = near_square(np.concatenate(list(tiles), axis=1))
    assert picture.shape == (6, 8, 3)
    assert picture[::2, ::2, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 255, 255]]
    three = np.zeros((2, 6, 3), np.uint8)
    assert near_square(three) is three


def test_a_resumed_run_has_every_step_once_and_no_old_error(store: Store, config: Config) -> None:
    first = started(store, config)
    for step in range(1, 6):
        first.metrics(step, {"train/loss": float(step)})
    first.metrics(4, {"val/loss": 4.0})
    first.fail("boom", "Traceback ... boom")
    failed = store.client.get_run(first.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["microdit.error"] == "boom"
    assert "Traceback" in failed.data.tags["microdit.traceback"]
    again = recorder(store, first.run_id)
    again.open()
    assert store.client.get_run(first.run_id).info.status == "RUNNING"
    again.start(config, FACTS)
    for step in range(4, 9):  # from the checkpoint of step 3
        again.metrics(step, {"train/loss": float(step)})
    again.metrics(4, {"val/loss": 4.0})
    again.metrics(8, {"val/loss": 8.0})
    again.finish("FINISHED")
    assert history(store, first.run_id, "train/loss") == [(step, float(step)) for step in range(1, 9)]
    assert history(store, first.run_id, "val/loss") == [(4, 4.0), (8, 8.0)]
    assert "microdit.error" not in store.client.get_run(first.run_id).data.tags


def test_metrics_are_buffered_and_complete_at_the_end(store: Store, config: Config) -> None:
    record = started(store, config)
    for step in range(1, 2501):
        record.metrics(step, {"train/loss": 1.0})
    record.finish("FINISHED")
    assert len(history(store, record.run_id, "train/loss")) == 2500


def test_a_store_that_is_unreachable_for_a_moment_loses_nothing(
    store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.tracking.retry.time.sleep", lambda seconds: None)
    record = started(store, config)
    real, calls = mlflow.MlflowClient.log_batch, []

    def flaky(*words: object, **named: object) -> object:
        calls.append(1)
        if len(calls) < 4:
            raise MlflowException("database is locked")
        return real(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", flaky)
    record.metrics(1, {"train/loss": 1.0})
    record.finish("FINISHED")
    assert history(store, record.run_id, "train/loss") == [(1, 1.0)]


def test_a_full_disk_fails_at_once_with_one_sentence(
    store: Store, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError as error:
            raise MlflowException("(sqlite3.OperationalError) [SQL: INSERT ...]") from error

    record = started(store, config)
    monkeypatch.setattr("sweeps.tracking.retry.time.sleep", lambda seconds: pytest.fail("waited"))
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", full)
    record.metrics(1, {"train/loss": 1.0})
    with pytest.raises(StoreError, match=r"^[^\n]*\(database or disk is full\); make room[^\n]*$"):
        record.flush()


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    (tmp_path / "mine.yaml").write_text(STUDY)
    study = load_study(str(tmp_path / "mine.yaml"), "smoke")
    ready = {"data_fingerprint": "abc123", "feature_net": "net@1"}
    return [dataclasses.replace(trial, **ready) for trial in plan_trials(study, [])]  # type: ignore[arg-type]


def begin(store: Store, trials: list[Trial], tmp_path: Path, fresh: bool = False) -> Launch:
    study = load_study(str(tmp_path / "mine.yaml"), "smoke")
    return store.start_launch(study, trials, "microdit-sweep study=mine", fresh)


def finish(store: Store, trial: Trial, config: Config, launch: Launch, **facts: str) -> str:
    tags = trial.identity | {"microdit.arm": trial.arm, "mlflow.parentRunId": launch.parent_id}
    spec = RunSpec(launch.experiment_id, trial.name, tags, {"seed": 0}, "x")
    record = MlflowLogger(store.uri, spec)
    record.start(config, FACTS | facts)
    record.metrics(4, {"train/loss": 0.5, "final/fd": 1.0})
    record.finish("FINISHED")
    return record.run_id


def test_a_launch_is_resumed_or_new(store: Store, trials: list[Trial], tmp_path: Path) -> None:
    first = begin(store, trials, tmp_path)
    assert begin(store, trials, tmp_path) == first
    fewer = begin(store, trials[:1], tmp_path)
    assert fewer.parent_id != first.parent_id
    assert begin(store, trials, tmp_path).parent_id != first.parent_id, "the newest launch is the present one"
    assert begin(store, trials[:1], tmp_path, fresh=True).parent_id != fewer.parent_id
    run = store.client.get_run(first.parent_id)
    assert run.data.tags["microdit.role"] == "study"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**Does it?**")
    assert "2 trials, 2 arms, seeds 0." in note
    assert "Every arm is compared with `none`. Held fixed over the arms: steps." in note
    for command in ("study=mine  ", "status study=mine scale=smoke  ", "microdit-report mine scale=smoke  "):
        assert command in note
    assert [item.path for item in store.client.list_artifacts(first.parent_id)] == ["study.yaml"]


def test_a_finished_trial_is_found_and_copied_with_its_origin(
    store: Store, trials: list[Trial], config: Config, tmp_path: Path
) -> None:
    trial = trials[0]
    first = begin(store, trials, tmp_path)
    origin = finish(store, trial, config, first)
    assert store.finished(trials[1].identity) is None
    found = store.finished(trial.identity)
    assert found is not None
    assert found.info.run_id == origin
    second = begin(store, trials[:1], tmp_path)
    store.reuse(second, trial, found)
    copy = store.child(second, trial.key)
    assert copy is not None
    assert copy.data.tags["microdit.reused_from"] == origin
    assert copy.info.status == "FINISHED"
    assert copy.data.metrics["final/fd"] == 1.0
    assert history(store, copy.info.run_id, "train/loss") == [(4, 0.5)]
    assert [item.path for item in store.client.list_artifacts(copy.info.run_id)]


@pytest.mark.parametrize("change", ["data_fingerprint", "feature_net"])
def test_a_trial_on_other_data_or_scores_is_not_reused(
    store: Store, trials: list[Trial], config: Config, tmp_path: Path, change: str
) -> None:
    finish(store, trials[0], config, begin(store, trials, tmp_path))
    changed = dataclasses.replace(trials[0], **{change: "another"})  # type: ignore[arg-type]
    assert store.finished(changed.identity) is None
    assert begin(store, [changed, *trials[1:]], tmp_path) != begin(store, trials, tmp_path)


def test_mlflows_pages_have_views_of_the_study(store: Store, trials: list[Trial], tmp_path: Path) -> None:
    launch = begin(store, trials, tmp_path)
    tags = store.client.get_experiment(launch.experiment_id).tags
    found = {}
    for key in (ARMS_VIEW, SCORES_VIEW, SAMPLES_VIEW):
        kept = json.loads(tags[f"mlflow.sharedViewState.{key}"])
        assert len(tags[f"mlflow.sharedViewState.{key}"]) < 5000, "what MLflow accepts"
        found[kept["name"]] = json.loads(zlib.decompress(base64.b64decode(kept["state"].removeprefix("deflate;"))))
    assert list(found) == ["arms", "scores", "samples"]
    columns = found["scores"]["selectedColumns"]
    assert columns[:3] == ["params.`seed`", "params.`model.masking.method`", "params.`model.masking.ratio`"]
    assert "metrics.`final/clip_fd`" in columns
    charts = [chart["metricKey"] for chart in found["arms"]["compareRunCharts"]]
    assert charts[0] == "final/clip_fd"
    assert charts[-2:] == ["train/loss", "val/loss"]
    assert found["arms"]["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "microdit.arm"}]
    assert found["samples"]["compareRunCharts"][0]["step"] == trials[0].config.training.steps
    begin(store, trials[:1], tmp_path, fresh=True)
    _, mine, newest = links(store, "http://here:1")
    assert mine.endswith("&compareRunsMode=CHART&viewStateShareKey=microdit-arms")
    assert newest.split()[-1].startswith(f"http://here:1/#/experiments/{launch.experiment_id}/runs/")
    assert launch.parent_id not in newest
