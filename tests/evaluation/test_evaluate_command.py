"""`microdit evaluate` on pictures from anywhere: readable, machine-readable, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from microdit.cli import main
from microdit.config import Config, load_config, save_config
from microdit.data.base import build_dataset
from microdit.evaluation import evaluate_folder

COUNT = 12


@pytest.fixture(scope="module")
def config_file(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete configuration, which need not have been trained."""
    path = tmp_path_factory.mktemp("evaluate") / "config.yaml"
    evaluation = dataclasses.replace(smoke_config.evaluation, metrics=("clip_fd", "clip_score", "class_accuracy"))
    save_config(dataclasses.replace(smoke_config, evaluation=evaluation), path)
    return path


@pytest.fixture
def pictures(smoke_config: Config, tmp_path: Path) -> Path:
    """Real pictures with their captions, as somebody else's generator would leave them."""
    data, folder = build_dataset(smoke_config.data, "val"), tmp_path / "pictures"
    folder.mkdir()
    items = [data[i] for i in range(COUNT)]
    for number, item in enumerate(items):
        Image.fromarray(item.image).save(folder / f"{number:02}.png")
    listing = {"prompts": [item.caption for item in items], "labels": [item.label for item in items]}
    (folder / "prompts.json").write_text(json.dumps(listing))
    return folder


def test_pictures_of_anyone_are_scored(config_file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(config_file), "--images", str(pictures)]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head == "12 samples, 16 real pictures"
    assert [line.split()[0] for line in lines] == ["clip_fd", "clip_score", "class_accuracy"]
    assert "floor " in lines[0]
    assert "on score-clip@" in lines[0]
    assert last.startswith("Fewer samples than features: clip_fd (128).")


def test_json_has_the_numbers_of_the_function(config_file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(config_file), "--images", str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = load_config(config_file)
    reference = build_dataset(config.data, "train")
    assert found == evaluate_folder(pictures, reference, config.evaluation, Path(config.cache_dir) / "features")
    assert found["samples"] == COUNT


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["evaluate", *map(str, words)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("microdit: ")
    assert len(message.splitlines()) == 1
    return message


def test_mistakes_are_one_line(
    config_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere is not a folder" in refused(capsys, config_file, "--images", tmp_path / "nowhere")
    assert "no.yaml: no such file" in refused(capsys, tmp_path / "no.yaml", "--images", pictures)
    assert "--samples" in refused(capsys, config_file, "--images", pictures, "--samples", "4")
    assert "model.safetensors: no such file" in refused(capsys, config_file)
    prompts = pictures / "prompts.json"
    prompts.write_text(json.dumps({"prompts": ["a cat"] * COUNT, "labels": 3}))
    assert "'labels' must be a list" in refused(capsys, config_file, "--images", pictures)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "prompts.json").write_text(json.dumps({"prompts": []}))
    assert "empty has no pictures" in refused(capsys, config_file, "--images", empty)
    prompts.write_text(json.dumps({"prompts": ["a cat"] * COUNT}))
    Image.new("RGB", (64, 64)).save(pictures / "03.png")
    assert "the reference 32 x 32" in refused(capsys, config_file, "--images", pictures)
