"""Test the complete workflow at `smoke` scale by commands."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from microdit.config.schema import load_config
from sweeps.cli import main

ARMS = ("none", "naive_75", "deferred_75", "maskdit_75")


@dataclass(frozen=True)
class Road:
    """Return the folder in which the commands ran, and their output."""

    folder: Path
    sweep: subprocess.CompletedProcess[str]
    report: subprocess.CompletedProcess[str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}")

    def runs(self, role: str) -> list[Any]:
        experiment = self.client.get_experiment_by_name("microdit/masking_ratio")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], f"tags.`microdit.role` = '{role}'"))


def command(module: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    surroundings = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", module, *words]
    return subprocess.run(line, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Road:
    folder = tmp_path_factory.mktemp("road")
    sweep = command("sweeps", folder, "study=masking_ratio", "scale=smoke", f"cache_dir={cache_dir}", "workers=2")
    assert sweep.returncode == 0, sweep.stderr
    report = command("analysis", folder, "masking_ratio", "scale=smoke")
    assert report.returncode == 0, report.stderr
    return Road(folder, sweep, report)


def test_the_sweep_prints_what_it_does_and_what_comes_next(road: Road) -> None:
    for word in (
        *ARMS,
        "clip_fd",
        "val_loss",
        "(n=1)",
        "microdit-report masking_ratio scale=smoke",
        "microdit-sweep ui",
    ):
        assert word in road.sweep.stdout
    for arm in ARMS:
        assert f"done    {arm}/seed0" in road.sweep.stderr
    assert "Traceback" not in road.sweep.stderr
    assert "INFO" not in road.sweep.stderr, "MLflow's own chatter"


def test_every_trial_is_a_child_of_one_launch(road: Road) -> None:
    (parent,) = road.runs("study")
    trials = road.runs("trial")
    assert {run.info.run_name for run in trials} == {f"{arm}/seed0" for arm in ARMS}
    for run in [parent, *trials]:
        assert run.info.status == "FINISHED"
    for run in trials:
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["microdit.arm"] == run.info.run_name.split("/")[0]
        assert tags["microdit.scale"] == "smoke"
        assert set(run.data.params) == {"seed", "model.masking.method", "model.masking.ratio"}
        for name in ("trial_key", "study", "git_commit", "git_dirty", "command", "data_fingerprint", "feature_net"):
            assert tags[f"microdit.{name}"]


def test_metrics_images_and_files_are_stored(road: Road) -> None:
    for run in road.runs("trial"):
        metrics = run.data.metrics
        for name in ("final/fd", "final/kid", "final/clip_fd", "final/clip_score", "final/class_accuracy"):
            assert name in metrics
        assert metrics["final/val_loss"] == metrics["val/loss"]
        for name in ("cost/params", "cost/train_flops", "cost/seconds", "cost/gflops_per_image", "val/loss"):
            assert name in metrics
        points = road.client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.step for point in points] == [1, 2, 3, 4]
        items = {item.path for item in road.client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "samples", "images", "metrics.json"} <= items
        images = [item.path for item in road.client.list_artifacts(run.info.run_id, "images")]
        steps = {path.split("+step+")[1].split("+")[0] for path in images}
        assert steps == {"0", "2", "4"}


def test_a_stored_config_runs_without_sweep_and_store(road: Road, tmp_path: Path, cache_dir: Path) -> None:
    run = next(run for run in road.runs("trial") if run.data.tags["microdit.arm"] == "naive_75")
    path = road.client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert load_config(path).model.masking.method == "naive"
    done = command("microdit", tmp_path, "train", path, "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("final/clip_fd "))
    assert float(line.split()[1]) == pytest.approx(run.data.metrics["final/clip_fd"], rel=1e-4)


def test_the_report_has_the_stores_numbers(road: Road) -> None:
    folder = road.folder / "results" / "masking_ratio" / "smoke"
    with open(folder / "runs.csv", newline="") as stream:
        rows = {row["arm"]: row for row in csv.DictReader(stream)}
    assert set(rows) == set(ARMS)
    for run in road.runs("trial"):
        row = rows[run.data.tags["microdit.arm"]]
        assert float(row["final/clip_fd"]) == pytest.approx(run.data.metrics["final/clip_fd"])
    table = (folder / "table.md").read_text(encoding="utf-8")
    for word in (*ARMS, "(n=1)", "without an interval it can't be distinguished from seed noise", "Fewer samples"):
        assert word in table
    for name in ("figure.png", "curves.png", "samples.png"):
        with Image.open(folder / name) as picture:
            assert picture.convert("L").getextrema()[0] < 128 < picture.convert("L").getextrema()[1]
        assert str(Path("results") / "masking_ratio" / "smoke" / name) in road.report.stdout
    (parent,) = road.runs("study")
    logged = {item.path for item in road.client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/table.md", "report/figure.png", "report/samples.png"} <= logged


def test_a_second_launch_trains_nothing(
    road: Road, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {run.info.run_id for run in road.runs("trial")}
    monkeypatch.chdir(road.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["study=masking_ratio", "scale=smoke", f"cache_dir={cache_dir}"]) == 0
    assert "4 finished before, 0 to run" in capsys.readouterr().err
    assert {run.info.run_id for run in road.runs("trial")} == before
