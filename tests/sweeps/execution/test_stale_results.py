"""Test changed data under the same names: it is another run, and old checkpoints are not resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launching import STUDY, stored_runs
from PIL import Image

from microdit.cli.main import main as microdit
from sweeps.cli import main
from sweeps.tracking.mlflow_store import Store

SMALL = (
    "data=folder data.resolution=32 model.input_size=8 data.path=pictures data.val_fraction=0.3 "
    "evaluation.metrics=[clip_score]"
)
OLD = 1_700_000_000


def draw(value: int, names: str = "abcdefghijklmnopqrstuvwx") -> None:
    """Write captioned images whose names, sizes and times don't depend on `value`."""
    Path("pictures").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        picture = np.full((32, 32, 3), value, np.uint8)
        picture[number % 32] = number
        path = Path("pictures", f"{name}.bmp")
        Image.fromarray(picture).save(path)
        path.with_suffix(".txt").write_text(f"a picture, number {number}")
        for file in (path, path.with_suffix(".txt")):
            os.utime(file, (OLD, OLD))


def line(cache: Path, *words: str) -> list[str]:
    return ["train", "scale=smoke", *SMALL.split(), "evaluation.samples=2", f"cache_dir={cache}", *words]


def test_replaced_images_are_another_run_and_the_same_ones_are_not(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(40)
    before = {path.name: path.stat().st_size for path in Path("pictures").iterdir()}
    assert main(line(cache_dir)) == 0
    assert main(line(cache_dir)) == 0
    assert "finished before" in capsys.readouterr().out
    draw(200)
    assert before == {path.name: path.stat().st_size for path in Path("pictures").iterdir()}
    assert main(line(cache_dir)) == 0
    assert "finished before" not in capsys.readouterr().out
    first, second = stored_runs(study="train")
    assert first.data.metrics["final/val_loss"] != second.data.metrics["final/val_loss"]
    assert first.data.tags["microdit.output_dir"] != second.data.tags["microdit.output_dir"]
    for run in (first, second):
        assert run.data.tags["microdit.algorithm"].isdigit()


def test_replaced_prompts_are_scored_anew_with_the_same_weights(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(40)
    Path("prompts.txt").write_text("a red car\na blue cat\n")
    words = line(cache_dir, "evaluation.prompts=prompts.txt")
    assert main(words) == 0
    Path("prompts.txt").write_text("a red dog\na gray owl\n")
    assert main(words) == 0
    assert "finished before" not in capsys.readouterr().out
    first, second = stored_runs(study="train")
    assert first.data.tags["microdit.feature_net"] != second.data.tags["microdit.feature_net"]
    assert first.data.metrics["final/val_loss"] == second.data.metrics["final/val_loss"]
    assert first.data.metrics["final/clip_score"] != second.data.metrics["final/clip_score"]


def test_a_checkpoint_resumes_on_no_other_data(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replaced training or held-out image is detected by both commands in any folder."""
    draw(40)
    here = line(cache_dir, "output_dir=out", "evaluation.samples=0")
    assert main(here) == 0
    for changed in ("abcdefghijklmnopqrstuvwx", "m"):
        draw(40)
        draw(90, changed)
        assert main(here) == 2
        assert "was trained on other data" in capsys.readouterr().err
        assert microdit(["train", "out/config.yaml"]) == 2
        assert "was trained on other data" in capsys.readouterr().err
    draw(40)
    assert microdit(["train", "out/config.yaml"]) == 0
    assert microdit(["finetune", "out", "--data", "pictures", "--out", "tuned", "--steps", "2"]) == 0
    draw(90)
    assert microdit(["finetune", "out", "--data", "pictures", "--out", "tuned", "--steps", "2"]) == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_a_study_reuses_no_run_of_other_data_or_of_another_algorithm(
    launch: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(40)
    words = (STUDY, *SMALL.split(), "seeds=[0]")
    assert launch(*words) == 0
    draw(200)
    assert launch(*words) == 0
    finals = [run.data.metrics["final/val_loss"] for run in stored_runs()]
    assert len(set(finals)) == 4
    assert "are not reused" not in capsys.readouterr().err
    assert launch(*words) == 0
    assert len(stored_runs()) == 4
    client = Store(f"sqlite:///{Path('runs', 'mlflow.db')}", Path("runs")).client
    for run in stored_runs():  # what an older version recorded has another key and no such tag
        client.delete_tag(run.info.run_id, "microdit.algorithm")
        client.set_tag(run.info.run_id, "microdit.trial_key", "0" * 16)
    Path("runs", "optuna.db").unlink()  # its queue had another name
    capsys.readouterr()
    assert launch(*words) == 0
    assert capsys.readouterr().err.count("4 finished runs of algorithm 1 are not reused: ") == 1
    assert len(stored_runs()) == 6
    assert launch(*words) == 0
    assert "are not reused" not in capsys.readouterr().err
