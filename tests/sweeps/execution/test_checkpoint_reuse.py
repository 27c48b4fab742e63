"""Test that arms that differ only in evaluation are trained once, with the results of separate training."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import stored_runs
from mlflow.entities import Run

from sweeps.cli import main

STUDY = """
question: Does guidance help?
arms: {none: {sampler.guidance: 1.0}, guided: {sampler.guidance: 3.0}}
baseline: none
seeds: [0]
metrics: {primary: clip_fd}
"""


def sweep(root: str, cache_dir: Path, *words: str) -> dict[str, Run]:
    Path("mine.yaml").write_text(STUDY)
    line = ["study=mine.yaml", "scale=smoke", "workers=1", f"root={root}", f"cache_dir={cache_dir}", *words]
    assert main(line) == 0
    return {run.data.tags["microdit.arm"]: run for run in stored_runs(root)}


def test_a_shared_network_is_trained_once_and_scores_as_if_trained_alone(cache_dir: Path) -> None:
    shared = sweep("shared", cache_dir)
    [taken] = [run for run in shared.values() if "microdit.trained_in" in run.data.tags]
    [first] = [run for run in shared.values() if run is not taken]
    assert taken.data.tags["microdit.trained_in"] == first.data.tags["microdit.output_dir"]
    assert "train/loss" not in taken.data.metrics
    alone = sweep("alone", cache_dir, "reuse=false")
    for arm, run in alone.items():
        assert "microdit.trained_in" not in run.data.tags
        for name, value in run.data.metrics.items():
            if name.startswith("final/"):
                assert shared[arm].data.metrics[name] == value, f"{arm}: {name}"
    assert shared["none"].data.metrics["final/clip_fd"] != shared["guided"].data.metrics["final/clip_fd"]


def test_the_plan_counts_their_training_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(STUDY)
    assert main(["plan", "study=mine.yaml", "scale=smoke", "measure=false"]) == 0
    printed = capsys.readouterr().out
    assert "differ only in evaluation; trainings saved: 1" in printed
    total = next(line for line in printed.splitlines() if line.startswith("total"))
    assert total.split()[1] == "1"
