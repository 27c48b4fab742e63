"""Test that runs that are not comparable are separated and listed, or rejected."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_store import StudyWriter, arm, final, study_file

from analysis import cli
from analysis.claims.verdicts import verdicts
from analysis.errors import MixtureError, ReportError
from analysis.io.comparable_runs import SetSelection, comparable
from analysis.io.results import Results, load
from analysis.io.store import open_store
from analysis.report.footnotes import table_footnotes

TWO = {"none": arm("none", 0.0), "naive_75": arm("naive", 0.75)}
Fresh = tuple[str, Path]


def launch(fresh: Fresh, **changes: Any) -> StudyWriter:
    return StudyWriter(*fresh, "masking_ratio", study_file(TWO, [0], **changes))


def read(fresh: Fresh, which: int | None = 1, pool_code: bool = False) -> Results:
    return load(open_store(fresh[0]), "masking_ratio", choice=SetSelection(which, pool_code))


def budget(steps: int, batch: int) -> dict[str, Any]:
    return {"training": {"steps": steps, "batch_size": batch}, "model": {"masking": {"block_size": 2}}}


def shown(found: Results) -> dict[str, float]:
    return dict(zip(found.frame["arm"], found.frame["final/clip_fd"], strict=True))


def test_runs_of_another_budget_are_a_separate_set(fresh: Fresh) -> None:
    writer = launch(fresh)
    for name, value in (("none", 30.0), ("naive_75", 40.0)):
        writer.run(name, 0, final(value), config=budget(100, 16))
    for name, value in (("none", 10.0), ("naive_75", 20.0)):
        writer.run(name, 0, final(value), config=budget(1400, 16))
    newest = read(fresh)
    assert shown(newest) == {"none": 10.0, "naive_75": 20.0}
    words = (
        "Left out as not comparable: 2 runs (none, naive_75): steps x batch 1,600 instead of 22,400 (set=2 shows them)"
    )
    assert any(words in note for note in table_footnotes(newest))
    assert shown(read(fresh, 2)) == {"none": 30.0, "naive_75": 40.0}
    with pytest.raises(MixtureError, match=r"2 runs \(none, naive_75\): steps x batch 1,600 instead of 22,400"):
        read(fresh, None)
    with pytest.raises(ReportError, match="set=3: there are only 2"):
        read(fresh, 3)


def test_runs_of_another_algorithm_are_a_separate_set(fresh: Fresh) -> None:
    writer = launch(fresh)
    writer.run("none", 0, final(30.0))  # the first algorithm wrote no tag
    writer.run("naive_75", 0, final(40.0))
    writer.run("none", 0, final(10.0), algorithm="2")
    writer.run("naive_75", 0, final(20.0), algorithm="2")
    assert shown(read(fresh)) == {"none": 10.0, "naive_75": 20.0}
    assert shown(read(fresh, 2)) == {"none": 30.0, "naive_75": 40.0}
    assert any("algorithm 1 instead of 2" in note for note in table_footnotes(read(fresh)))
    with pytest.raises(MixtureError, match="algorithm 1 instead of 2"):
        read(fresh, None)


def test_the_same_images_in_other_steps_are_one_budget(fresh: Fresh) -> None:
    writer = launch(fresh)
    writer.run("none", 0, final(10.0), config=budget(200, 8))
    writer.run("naive_75", 0, final(20.0), config=budget(100, 16))
    found = read(fresh, None)
    assert len(found.frame) == 2
    assert found.settings("none")["model.masking.block_size"] == 2


@pytest.mark.parametrize(
    ("holds", "flops", "sets"),
    [("flops", 2.51e15, 1), ("flops", 3e15, 2), ("steps", 3e15, 1), ("params", 3e15, 1), ("time", 3e15, 1)],
)
def test_the_budget_is_what_the_study_holds(holds: str, flops: float, sets: int) -> None:
    """A sweep tolerates a difference of one percent in FLOPs and parameters."""
    tags = {"data_fingerprint": "f", "feature_net": "n", "samples": "8", "git_commit": "c", "git_dirty": "false"}
    row = {f"tag.{name}": value for name, value in tags.items()} | {"seed": 0, "cost/params": 1e6}
    rows = [{"arm": "none", "started": 1, "cost/train_flops": 2.5e15}, {"arm": "naive_75", "started": 2}]
    frame = pd.DataFrame([row | rows[0], row | rows[1] | {"cost/train_flops": flops}])
    found = comparable(frame, holds)
    assert len(found) == sets
    assert found[0].frame["arm"].iloc[-1] == "naive_75", "the newest run's set is first"


def test_another_reference_is_another_measurement(fresh: Fresh) -> None:
    writer = launch(fresh)
    writer.run("none", 0, final(10.0))
    writer.run("naive_75", 0, final(20.0, reference_images=64.0))
    assert "real images 2,048 instead of 64" in read(fresh).left_out[0]


def test_code_versions_are_separate_unless_pooled(fresh: Fresh) -> None:
    old, new = "a" * 40, "b" * 40
    writer = launch(fresh)
    writer.run("none", 0, final(10.0), git_commit=old)
    writer.run("naive_75", 0, final(20.0), git_commit=new)
    found = read(fresh)
    assert shown(found) == {"naive_75": 20.0}
    assert found.absent == ("none, seed 0: not comparable with the runs shown",)
    assert "code aaaaaaaaaa instead of bbbbbbbbbb (set=2 shows them, code=any pools them)" in found.left_out[0]
    pooled = read(fresh, None, pool_code=True)
    assert shown(pooled) == {"none": 10.0, "naive_75": 20.0}
    assert any("code aaaaaaaaaa, bbbbbbbbbb" in note for note in table_footnotes(pooled))


def test_uncommitted_changes_are_another_code(fresh: Fresh) -> None:
    writer = launch(fresh)
    writer.run("none", 0, final(10.0))
    writer.run("naive_75", 0, final(20.0), git_dirty="true")
    with pytest.raises(MixtureError, match=r"instead of .* with uncommitted changes"):
        read(fresh, None)


def test_the_command_chooses_the_set(fresh: Fresh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = launch(fresh)
    writer.run("none", 0, final(10.0), git_commit="aaaa")
    writer.run("naive_75", 0, final(20.0), git_commit="bbbb")
    words = ["masking_ratio", f"tracking_uri={fresh[0]}", f"out={tmp_path / 'out'}", "publish=false"]
    assert cli.main([*words, "set=only"]) == 2
    assert "1 run (none): code aaaa instead of bbbb" in capsys.readouterr().err
    assert cli.main([*words, "set=only", "code=any"]) == 0
    assert "naive_75: +10.00 CLIP-FD against none at n=1" in capsys.readouterr().out
    assert cli.main([*words, "set=0"]) == 2
    assert "it must be a number from 1, or only" in capsys.readouterr().err


def test_scores_on_several_noise_sets_are_one_score_per_run(fresh: Fresh) -> None:
    writer = StudyWriter(*fresh, "masking_ratio", study_file(TWO, [0, 1]))
    for name, base in (("none", 10.0), ("naive_75", 20.0)):
        for seed in (0, 1):
            noises = {f"noise{k}/clip_fd": base + seed + k for k in (1, 2)}
            writer.run(name, seed, final(base + seed, **noises))
    found = read(fresh)
    assert found.frame["final/clip_fd"].tolist() == [11.0, 12.0, 21.0, 22.0]
    text = "\n".join(table_footnotes(found))
    assert "Variance of CLIP-FD: standard deviation 0.408 between training seeds, 1.00 from evaluation noise" in text
    assert "over 4 runs, 12 scores" in text


def test_settings_of_a_claim_come_from_the_runs_own_config(fresh: Fresh) -> None:
    """The overrides of these arms don't set the feed-forward; only config.yaml does."""
    arms = {"new": {"model.depth": 4}, "old": {"model.depth": 5}}
    writer = StudyWriter(*fresh, "ffn_activation", study_file(arms, [0, 1, 2], baseline="old"))
    for name, kind, value in (("new", "swiglu", 10.0), ("old", "gelu", 20.0)):
        for seed in (0, 1, 2):
            config = {"model": {"ffn": {"type": kind}}}
            writer.run(name, seed, final(value + 0.1 * seed * (kind == "gelu")), config=config)
    found = load(open_store(fresh[0]), "ffn_activation")
    assert [one.word for one in verdicts(found)] == ["reproduced"]
