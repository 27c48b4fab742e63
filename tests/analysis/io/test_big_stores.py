"""Test that reading many runs in bulk gives the same frames as MLflow's own client."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from report_scaling import FEW, bench, fill

from analysis import cli
from analysis.errors import ReportError
from analysis.figures.curves import curve_figure
from analysis.io.results import Results, load
from analysis.io.store import open_store

STUDY = "masking_ratio"
LATE = 2_000_000_000_000  # milliseconds, later than all runs of the store
METRICS = ("train/loss", "val/loss")


class Client:
    """Read with MLflow's public client only, as for stores without a faster reader."""

    def __init__(self, uri: str) -> None:
        self._client = open_store(uri)

    def __getattr__(self, name: str) -> Any:
        if name == "tracking_uri":
            raise AttributeError(name)
        return getattr(self._client, name)


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with sixty runs of thirty arms, some of them unusual."""
    root = tmp_path_factory.mktemp("big")
    shutil.copy(empty_store, root / "mlflow.db")
    uri = fill(root, runs=60, points=12, arms=30)
    client = MlflowClient(uri)
    runs = [f"{number:032x}" for number in range(60)]
    odd = [Metric("train/loss", value, LATE, step) for step, value in ((3, 5.0), (3, 4.0), (4, float("nan")))]
    client.log_batch(runs[0], [*odd, Metric("train/loss", float("inf"), LATE, 5), Metric("train/loss", 9.0, 1, 3)])
    client.log_batch(runs[1], [Metric("final/clip_fd", float("nan"), 10, 1), Metric("final/kid", float("nan"), 10, 1)])
    client.log_batch(runs[2], [Metric("final/kid", float("nan"), 10, 1), Metric("Final/kid", 1.0, 10, 0)])
    client.set_terminated(runs[3], "FAILED")
    client.set_tag(runs[3], "microdit.error", "OutOfMemoryError: no room")
    client.set_terminated(runs[4], "KILLED")
    client.update_run(runs[5], status="RUNNING")
    client.delete_run(runs[6])
    client.set_tag(runs[7], "microdit.training.steps", "many")
    client.delete_tag(runs[8], "microdit.training.batch_size")
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        database.execute("DELETE FROM metrics WHERE run_uuid = ? AND key = 'train/loss'", (runs[9],))
        database.commit()
    return uri


def both(uri: str, other: Any) -> tuple[Results, Results]:
    """Return results of the faster way and of `other`."""
    return load(open_store(uri), STUDY), load(other, STUDY)


def assert_same(found: Results, wanted: Results) -> None:
    pd.testing.assert_frame_equal(found.frame, wanted.frame)
    pd.testing.assert_frame_equal(found.others, wanted.others)
    assert found.absent == wanted.absent
    for metric in METRICS:
        histories, others = (results.histories(metric, results.arms) for results in (found, wanted))
        assert histories.keys() == others.keys()
        for run, (steps, values) in histories.items():
            np.testing.assert_array_equal(steps, others[run][0])
            np.testing.assert_array_equal(values, others[run][1])


def test_reading_in_bulk_matches_mlflows_client(store: str) -> None:
    found, wanted = both(store, Client(store))
    assert_same(found, wanted)
    assert len(found.frame) == 60 - 6
    assert any(line.endswith("failed (OutOfMemoryError: no room)") for line in found.absent)
    assert any(line.endswith("finished with final/clip_fd = nan") for line in found.absent)
    assert sorted(found.others["outcome"]) == ["failed"] * 3 + ["killed", "running"]
    assert found.frame["config.training.steps"].eq(1400).all(), "of a run without the tag from its config.yaml"
    steps, values = found.histories("train/loss", ["none"])[f"{0:032x}"]
    assert steps.tolist() == [1, 2, 3, *range(6, 13)], "steps 4 and 5 have no finite value"
    assert values[2] == 5.0, "the newest value of a step; the greatest of equally new ones"
    assert f"{9:032x}" not in found.histories("train/loss", found.arms)


def test_a_sqlite_store_is_read_in_bulk(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_store(store)
    monkeypatch.setattr(client, "get_metric_history", None)
    searched: list[str] = []
    search = client.search_runs
    monkeypatch.setattr(
        client, "search_runs", lambda ids, where, **rest: searched.append(where) or search(ids, where, **rest)
    )
    found = load(client, STUDY)
    assert len(found.histories("val/loss", found.arms)) == 54
    assert searched == ["tags.`microdit.role` = 'study'"], "the trials come from the tables"


def test_a_store_of_another_version_is_read_by_mlflows_client(store: str, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    shutil.copy(store.removeprefix("sqlite:///"), copy)
    with closing(sqlite3.connect(copy)) as database:
        database.execute("DROP INDEX index_metrics_run_uuid_key_step")
    uri = f"sqlite:///{copy}"
    assert_same(*both(uri, Client(uri)))


def test_reading_a_few_runs_does_not_read_thousands_of_others(store: str) -> None:
    found = load(open_store(store), "mixer_size")
    assert len(found.frame) == FEW
    assert len(found.histories("train/loss", found.arms)) == FEW
    assert set(found.frame["run_id"]).isdisjoint(load(open_store(store), STUDY).frame["run_id"])


def test_only_the_best_of_many_arms_are_drawn(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(open_store(store), STUDY)
    asked: set[str] = set()
    read = Results.histories
    monkeypatch.setattr(Results, "histories", lambda self, metric, arms: asked.update(arms) or read(self, metric, arms))
    figure = curve_figure(found)
    assert figure is not None
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    best = found.frame.groupby("arm")["final/clip_fd"].mean().sort_values().index[:24]
    assert set(names) == asked == {*best, "none"}
    assert f"The 24 best of {len(found.arms)} in CLIP-FD" in figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=0"], "'runs=0': it must be a whole number from 1"),
        (["run=9"], "there is no 'run'; did you mean 'runs'"),
    ],
)
def test_the_benchmark_rejects_other_words(words: list[str], message: str) -> None:
    with pytest.raises(ReportError, match=re.escape(message)):
        bench(words)


@pytest.mark.slow
def test_the_benchmark_prints_time_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    bench(["runs=24", "points=10", "arms=4"])
    printed = capfd.readouterr().out
    assert "masking_ratio: 24 runs" in printed
    assert "mixer_size: 20 runs" in printed
    assert printed.count("MiB") == 11
    for part in ("load", "tables, verdicts", "curves", "whole report"):
        assert printed.count(f"  {part} ") == 2


@pytest.fixture(scope="module")
def server(store: str) -> Iterator[str]:
    """Run MLflow's server on the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen([*line, "--workers", "1"], env=os.environ | settings, start_new_session=True) as process:
        try:
            for _ in range(120):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)


@pytest.mark.slow
def test_a_server_gives_the_same_report(server: str, store: str, tmp_path: Path) -> None:
    found, wanted = both(store, open_store(server))
    assert_same(found, wanted)
    assert_same(load(Client(server), STUDY), wanted)
    folders = []
    for name, uri in (("file", store), ("http", server)):
        folders.append(tmp_path / name / "mixer_size" / "demo")
        assert cli.main(["mixer_size", f"tracking_uri={uri}", f"out={tmp_path / name}", "publish=false"]) == 0
    for name in ("table.md", "runs.csv", "verdicts.csv", "comparisons.csv", "curves.png"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
