"""Test which runs a report uses, and which mixtures it rejects."""

from pathlib import Path

import pytest
from report_store import StudyWriter, arm, final, study_file

from analysis.errors import MixtureError, ReportError
from analysis.io.comparable_runs import SetSelection
from analysis.io.results import Results, load
from analysis.io.store import open_store
from analysis.report.footnotes import table_footnotes
from analysis.report.tables import columns, summary

TWO = {"none": arm("none", 0.0), "naive_75": arm("naive", 0.75)}
Fresh = tuple[str, Path]


def launch(fresh: Fresh, seeds: list[int], **changes: str) -> StudyWriter:
    return StudyWriter(*fresh, "masking_ratio", study_file(TWO, seeds), **changes)


def read(fresh: Fresh, scale: str | None = None) -> Results:
    return load(open_store(fresh[0]), "masking_ratio", scale)


def clip_fd(results: Results) -> dict[tuple[str, int], float]:
    frame = results.frame
    return dict(zip(zip(frame["arm"], frame["seed"], strict=True), frame["final/clip_fd"], strict=True))


def test_newest_finished_run_of_each_arm_and_seed(fresh: Fresh) -> None:
    writer = launch(fresh, [0, 1])
    writer.run("naive_75", 0, final(20.0))
    writer.run("none", 0, final(10.0))
    writer.run("none", 0, final(11.0))
    writer.run("none", 0, {}, status="FAILED")
    writer.run("none", 1, final(12.0))
    results = read(fresh)
    assert clip_fd(results) == {("none", 0): 11.0, ("none", 1): 12.0, ("naive_75", 0): 20.0}
    assert results.arms == ["none", "naive_75"], "the study's order, not the order of the runs"


def test_runs_of_an_older_launch_are_left_out(fresh: Fresh) -> None:
    old = launch(fresh, [0, 1])
    for seed in (0, 1):
        old.run("none", seed, final(99.0), samples="64", data_fingerprint="other")
    launch(fresh, [0]).run("none", 0, final(10.0))
    assert clip_fd(read(fresh)) == {("none", 0): 10.0}


def test_scale_chooses_the_launch(fresh: Fresh) -> None:
    launch(fresh, [0], scale="gpu").run("none", 0, final(5.0))
    launch(fresh, [0], scale="demo").run("none", 0, final(10.0))
    assert clip_fd(read(fresh)) == {("none", 0): 10.0}
    assert clip_fd(read(fresh, "gpu")) == {("none", 0): 5.0}
    with pytest.raises(ReportError, match="never launched at scale 'dmeo'; did you mean 'demo'"):
        read(fresh, "dmeo")


def test_missing_runs_are_listed(fresh: Fresh) -> None:
    writer = launch(fresh, [0, 1, 2])
    writer.run("none", 0, final(10.0))
    writer.run("none", 1, {}, status="FAILED", error="DivergenceError: loss is NaN at step 7")
    writer.run("none", 2, {}, status="RUNNING")
    writer.run("naive_75", 0, final(float("nan")))
    writer.run("naive_75", 1, {"samples": 4.0})
    results = read(fresh)
    assert results.absent == (
        "none, seed 1: failed (DivergenceError: loss is NaN at step 7)",
        "none, seed 2: still running",
        "naive_75, seed 0: finished with final/clip_fd = nan",
        "naive_75, seed 1: finished without final/clip_fd",
        "naive_75, seed 2: not started",
    )
    assert "loss is NaN at step 7" in table_footnotes(results)[-1]


def test_named_arms_over_an_axis_have_one_line_each(fresh: Fresh) -> None:
    arms = {f"{name}_lr={rate}": {"optimizer.lr": rate} for name in ("wide_net", "deep") for rate in (0.1, 0.01)}
    figure = {"x": "optimizer.lr", "hue": "arm"}
    writer = StudyWriter(*fresh, "masking_ratio", study_file(arms, [0], baseline="deep_lr=0.1", figure=figure))
    for name in arms:
        writer.run(name, 0, final(10.0))
    frame = read(fresh).frame
    assert dict(zip(frame["arm"], frame["hue"], strict=True)) == {name: name.partition("_lr=")[0] for name in arms}
    assert set(frame["x"]) == {0.1, 0.01}


def test_diverged_runs_are_rows_of_the_table(fresh: Fresh) -> None:
    writer = launch(fresh, [0, 1])
    writer.run("none", 0, final(10.0))
    for name, seed in (("none", 1), ("naive_75", 0), ("naive_75", 1)):
        writer.run(name, seed, {}, status="FAILED", error="loss is NaN at step 7", outcome="diverged")
    writer.run("naive_75", 1, {}, status="RUNNING")
    results = read(fresh)
    assert results.arms == ["none"]
    assert results.listed == ["none", "naive_75"]
    assert list(zip(results.others["arm"], results.others["outcome"], strict=True)) == [
        ("none", "diverged"),
        ("naive_75", "diverged"),
        ("naive_75", "running"),
    ]
    assert results.diverged["x"].tolist() == [0.0, 0.75]
    assert results.diverged["hue"].tolist() == ["none", "naive"]
    cells = {column.head: column.cells for column in columns(results)}
    assert cells["CLIP-FD ↓"] == ("10.00 (n=1), diverged (1 of 2)", "diverged (1 of 1)")
    assert cells["FD ↓"] == ("100.0 (n=1)", "-")
    assert cells["masking ratio"] == ("0", "0.75")
    assert cells["n"] == ("1", "0")
    assert summary(results)["diverged"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("tag", "fact", "values"),
    [
        ("samples", "samples", ("512", "64")),
        ("feature_net", "networks", ("Inception@aa", "DINOv2@bb")),
        ("data_fingerprint", "data", ("abc", "def")),
        ("git_commit", "code", ("aaaa", "bbbb")),
    ],
)
def test_runs_that_are_not_comparable_are_rejected(fresh: Fresh, tag: str, fact: str, values: tuple[str, str]) -> None:
    writer = launch(fresh, [0])
    writer.run("none", 0, final(10.0), **{tag: values[0]})
    writer.run("naive_75", 0, final(20.0), **{tag: values[1]})
    with pytest.raises(MixtureError) as caught:
        load(open_store(fresh[0]), "masking_ratio", choice=SetSelection(which=None))
    assert f"1 run (none): {fact} {values[0]} instead of {values[1]}" in str(caught.value)


def test_a_reused_trial_counts_and_is_mentioned(fresh: Fresh) -> None:
    writer = launch(fresh, [0])
    writer.run("none", 0, final(10.0), reused_from="abcdef")
    writer.run("naive_75", 0, final(20.0))
    assert "1 of 2 runs are reused from an earlier launch." in table_footnotes(read(fresh))


def test_nothing_finished(fresh: Fresh) -> None:
    launch(fresh, [0]).run("none", 0, {}, status="RUNNING")
    with pytest.raises(ReportError, match=r"at demo has finished .none, seed 0: still running"):
        read(fresh)


def test_curves_and_samples_are_read_back(masking_store: str) -> None:
    results = load(open_store(masking_store), "masking_ratio")
    steps, values = results.histories("train/loss", ["none"])[results.frame["run_id"][0]]
    assert steps.tolist() == list(range(25, 1001, 25))
    assert len(values) == 40
    found = results.samples(results.frame["run_id"][0])
    assert found is not None
    images, prompts = found
    assert [image.shape for image in images] == [(64, 64, 3)] * 4
    assert prompts[2] == "a ship"
