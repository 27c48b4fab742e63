"""Test network sizes: derived from data and encoders unless given; wrong ones are errors before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from launching import error_line
from PIL import Image

from microdit.cli.main import main as microdit
from microdit.common.errors import ConfigError
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import read_yaml
from microdit.config.schema import Config, config_from_mapping, load_config
from sweeps.cli import main
from sweeps.config.hydra_compose import compose_config
from sweeps.config.study import load_study
from sweeps.planning.trials import plan_trials

PAPER = ("data.path=/d", "autoencoder.path=/a", "text.path=/t")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Config:
    assert main(["config", *words]) == 0
    return config_from_mapping(yaml.safe_load(capsys.readouterr().out))


def rejected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert not captured.out
    return error_line(captured.err)


def autoencoder_folder(root: Path, channels: int, blocks: int) -> Path:
    """Write an autoencoder's configuration to a folder, without weights."""
    root.mkdir()
    settings = {"_class_name": "AutoencoderKL", "latent_channels": channels, "block_out_channels": [32] * blocks}
    (root / "config.json").write_text(json.dumps(settings))
    return root


@pytest.mark.parametrize("scale", group_options("scale"))
def test_the_scales_sizes_are_what_they_were(scale: str) -> None:
    file = read_yaml(EXPERIMENTS / "scale" / f"{scale}.yaml")
    config = compose_config([f"scale={scale}", *(PAPER if scale == "paper" else ())])
    assert config.model.input_size == file["model"]["input_size"]
    assert config.model.in_channels == 4
    assert config.model.caption_channels == (1024 if scale == "paper" else 128)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (("data.resolution=256",), (4, 64)),
        (("data=folder", "data.path=/d", "data.resolution=256"), (4, 64)),
        (("data=folder", "data.path=/d", "data.resolution=32"), (4, 8)),
        (("autoencoder.path=pixels",), (3, 64)),
        (("scale=smoke", "autoencoder.path=pixels", "data.resolution=48"), (3, 48)),
        (("scale=paper", *PAPER, "data.resolution=512"), (4, 64)),
        (("scale=paper", *PAPER[::2], "autoencoder.path=builtin"), (4, 64)),
        (("scale=smoke", "recipe=phase3", "training.init=/w"), (4, 16)),
        (("scale=smoke", "recipe=phase3", "training.init=/w", "data.resolution=128"), (4, 32)),
        (("scale=smoke", "model.input_size=8", "data.resolution=32"), (4, 8)),
    ],
)
def test_sizes_follow_the_resolution_and_the_autoencoder(
    words: tuple[str, ...], sizes: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = printed(capsys, *words).model
    assert (model.in_channels, model.input_size) == sizes


def test_sizes_follow_a_folder_of_an_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = autoencoder_folder(tmp_path / "deep", 16, 4)  # three halvings: a factor of 8
    model = printed(capsys, f"autoencoder.path={deep}", "data.resolution=128").model
    assert (model.in_channels, model.input_size) == (16, 16)


def test_the_width_of_captions_follows_the_text_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5", "d_model": 48}')
    (tmp_path / "clip").mkdir()
    clip = {"model_cfg": {"embed_dim": 8, "text_cfg": {"width": 72}, "vision_cfg": {}}}
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(clip))
    assert printed(capsys, f"text.path={tmp_path / 't5'}").model.caption_channels == 48
    assert printed(capsys, f"text.path={tmp_path / 'clip'}").model.caption_channels == 72
    assert printed(capsys, "text.path=ViT-L-14-quickgelu/openai").model.caption_channels == 768


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model.input_size=16 data.resolution=256",
            "'model.input_size' is 16, but the side at this data.resolution is 64",
        ),
        ("model.input_size=18", "'model.input_size' is 18, but the side at this data.resolution is 16"),
        ("model.in_channels=3", "'model.in_channels' is 3, but the autoencoder's number of latent channels is 4"),
        ("model.caption_channels=64", "'model.caption_channels' is 64, but the text encoder's width is 128"),
        ("data.resolution=250", "'data.resolution' is 250; the autoencoder needs a multiple of 4"),
    ],
)
@pytest.mark.parametrize("command", ["config", "train", "plan study=masking_ratio measure=false"])
def test_a_wrong_size_is_one_error_of_every_command(
    command: str, words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in rejected(capsys, *command.split(), *words.split())
    assert not list(tmp_path.iterdir())


def test_the_arms_of_a_study_follow_their_resolution(tmp_path: Path) -> None:
    path = tmp_path / "sides.yaml"
    path.write_text("question: Which side?\nholds: nothing\nseeds: [0]\naxes: {data.resolution: [32, 64]}\n")
    trials = plan_trials(load_study(str(path), "smoke"), [])
    assert {(trial.config.data.resolution, trial.config.model.input_size) for trial in trials} == {(32, 8), (64, 16)}
    path.write_text("question: Which side?\nholds: nothing\nseeds: [0]\narms: {a: {model.input_size: 16}}\n")
    with pytest.raises(ConfigError, match=r"sides\.yaml, arm 'a': 'model\.input_size' is 16, but .* is 8"):
        plan_trials(load_study(str(path), "smoke"), [])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for k in range(24):
        Image.fromarray(np.full((50, 70, 3), 10 * k, np.uint8)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"gray number {k}")
    return folder


def test_a_folder_is_trained_on_at_another_resolution_and_tuned_at_a_third(
    pictures: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, few = tmp_path / "run", ("training.steps=1", "evaluation.samples=0", f"cache_dir={cache_dir}")
    words = ["scale=smoke", "data=folder", f"data.path={pictures}", "data.resolution=64", f"output_dir={run}", *few]
    assert main(["train", *words]) == 0
    assert load_config(run / "config.yaml").model.input_size == 16
    tuned = tmp_path / "tuned"
    line = ["finetune", str(run), "--data", str(pictures), "--out", str(tuned), "--steps", "1", "data.resolution=128"]
    assert microdit(line) == 0
    config = load_config(tuned / "config.yaml")
    assert (config.data.resolution, config.model.input_size) == (128, 32)
    capsys.readouterr()
    assert microdit([*line[:4], "--out", str(tmp_path / "wrong"), "model.input_size=4"]) == 2
    assert "'model.input_size' is 4, but the side at this data.resolution is 16" in capsys.readouterr().err
    assert microdit(["evaluate", str(run), "--images", str(pictures), "--metrics", "clip_score"]) == 0
