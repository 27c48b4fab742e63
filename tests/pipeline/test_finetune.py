"""Test that a run fine-tuned on a few captioned images adopts their style."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import microdit as md
from microdit.cli.main import main
from microdit.config.schema import Config, load_config, save_config
from microdit.pipeline.train_and_evaluate import run

BLUE = np.array([40, 90, 200], np.uint8)


@pytest.fixture(scope="module")
def base(smoke_config: Config) -> Path:
    run(smoke_config)
    return Path(smoke_config.output_dir)


@pytest.fixture(scope="module")
def blue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight captioned images of one style: blue."""
    folder = tmp_path_factory.mktemp("blue")
    for number, thing in enumerate(("cat", "dog", "car", "ship", "frog", "bird", "horse", "truck")):
        Image.fromarray(np.tile(BLUE, (40, 48, 1))).save(folder / f"{thing}.png")
        (folder / f"{thing}.txt").write_text(f"a {thing}, number {number}")
    return folder


def finetune(base: Path, data: Path, out: Path, *words: str) -> int:
    return main(["finetune", str(base), "--data", str(data), "--out", str(out), *words])


def color(folder: Path, out: Path) -> np.ndarray:
    assert main(["sample", str(folder), "a cat", "--count", "8", "--steps", "4", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        return np.asarray(picture).reshape(-1, 3).mean(0)


def test_samples_take_on_the_style_of_eight_images(
    base: Path, blue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_file(base / "model.safetensors")
    assert finetune(base, blue, tmp_path / "tuned", "--steps", "100", "optimizer.lr=3e-3") == 0
    captured = capsys.readouterr()
    assert "7 images to train on and 1 held out; 100 steps of 8 images at learning rate 0.003" in captured.err
    assert "set evaluation.samples=N to score images, at most as many as are held out (1)" in captured.err
    assert f'next: microdit sample {tmp_path / "tuned"} "a caption"' in captured.out
    metrics = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert np.isfinite(metrics["final/val_loss"])
    plain, tuned = (color(folder, tmp_path / "cat.png") for folder in (base, tmp_path / "tuned"))
    assert np.abs(tuned - BLUE).max() < 0.5 * np.abs(plain - BLUE).max()
    after = load_file(base / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before), "the run it started from stays as it is"


def test_everything_else_is_the_runs_own(base: Path, blue: Path, tmp_path: Path) -> None:
    words = ("training.ema={decay: 0.25}", "sampler.guidance=3", "model.masking.ratio=0.5")
    assert finetune(base, blue, tmp_path / "tuned", "--steps", "1", *words) == 0
    ours, theirs = load_config(tmp_path / "tuned" / "config.yaml"), load_config(base / "config.yaml")
    assert (ours.text, ours.autoencoder, ours.seed) == (theirs.text, theirs.autoencoder, theirs.seed)
    assert (ours.training.ema.decay, ours.training.ema.start_step) == (0.25, 0)
    assert (ours.sampler.guidance, ours.model.masking.ratio) == (3.0, 0.5)
    assert ours.training.init == str(base)
    assert (
        md.Pipeline.from_pretrained(tmp_path / "tuned").denoiser.sigma_data
        == md.Pipeline.from_pretrained(base).denoiser.sigma_data
    )


def test_mistakes_are_named(
    base: Path, blue: Path, tmp_path: Path, smoke_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*words: str, run: Path = base, data: Path = blue) -> str:
        assert finetune(run, data, tmp_path / "tuned", *words) == 2
        return capsys.readouterr().err

    assert "unknown key 'optimizer.rl'; did you mean 'optimizer.lr'?" in failing("optimizer.rl=1")
    assert "unknown key 'trainin.steps'; did you mean 'training.steps'?" in failing("trainin.steps=3")
    assert "unknown key 'training.ema.deca'" in failing("training.ema={deca: 0.5}")
    assert "'steps' is not of the form key=value" in failing("steps")
    assert "'optimizer.lr' must be float, got 'fast'" in failing("optimizer.lr=fast")
    assert "only 1 held-out captions" in failing("evaluation.samples=2")
    assert "not a folder" in failing(data=tmp_path / "nothing")
    save_config(smoke_config, tmp_path / "unfinished" / "config.yaml")
    assert "has the run finished?" in failing(run=tmp_path / "unfinished")
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "model.yaml").write_text("width: 32\n")
    assert "imported model, which has no recipe" in failing(run=tmp_path / "imported")
    assert not (tmp_path / "tuned").exists()
    assert main(["sample", str(base), "a cat", "--sead", "1"]) == 2
    assert "unrecognized arguments: --sead 1; did you mean '--seed'?" in capsys.readouterr().err
