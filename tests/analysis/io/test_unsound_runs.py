"""Test that runs with NaN or infinity are listed as failed, and the others are shown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from report_store import StudyWriter, arm, final, study_file

from analysis.cli import main
from analysis.io.results import load
from analysis.io.store import open_store

ARMS = {"none": arm("none", 0.0), "naive_75": arm("naive", 0.75)}


def test_a_report_of_a_store_with_infinite_scores(fresh: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    uri, folder = fresh
    writer = StudyWriter(uri, folder, "masking_ratio", study_file(ARMS, [0, 1, 2, 3]))
    curves = {"train/loss": [0.9, math.nan, 0.7, math.inf, 0.5], "val/loss": [0.8, -math.inf, 0.6]}
    scores = {"none": [10.0, 11.0, 12.0, math.inf], "naive_75": [20.0, 22.0, math.nan, -math.inf]}
    for name, values in scores.items():
        for seed, value in enumerate(values):
            writer.run(name, seed, final(15.0) | {"clip_fd": value}, curves=curves)
    writer.run("none", 1, final(11.0) | {"kid": math.inf})
    assert main(["masking_ratio", f"tracking_uri={uri}", f"out={folder / 'out'}"]) == 0
    out = capsys.readouterr().out
    for words in (
        "none, seed 3: finished with final/clip_fd = inf",
        "naive_75, seed 2: finished with final/clip_fd = nan",
        "naive_75, seed 3: finished with final/clip_fd = -inf",
    ):
        assert words in out
    files = {path.name: path for path in (folder / "out").rglob("*") if path.suffix in (".csv", ".md", ".png")}
    assert {"figure.png", "curves.png", "table.md", "runs.csv"} <= set(files)
    for name in ("table.md", "runs.csv"):
        text = files[name].read_text()
        assert "e+308" not in text
        assert ",inf" not in text
    results = load(open_store(uri), "masking_ratio")
    assert np.isfinite(results.frame.filter(like="final/").to_numpy(float)).all()
    for steps, values in results.histories("train/loss", ["none", "naive_75"]).values():
        assert values.tolist() == [0.9, 0.7, 0.5]
        assert steps.tolist() == [25, 75, 125]
