"""Test `microdit evaluate` on any images: text and JSON output, and one line per mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from microdit.cli.main import main
from microdit.config.schema import Config, load_config, save_config
from microdit.data.registry import build_dataset
from microdit.evaluation.image_folder import evaluate_folder

COUNT = 12


@pytest.fixture(scope="module")
def config_file(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete configuration, which need not have been trained."""
    path = tmp_path_factory.mktemp("evaluate") / "config.yaml"
    evaluation = dataclasses.replace(smoke_config.evaluation, metrics=("clip_fd", "clip_score", "class_accuracy"))
    save_config(dataclasses.replace(smoke_config, evaluation=evaluation), path)
    return path


@pytest.fixture
def pictures(smoke_config: Config, tmp_path: Path) -> Path:
    """Write real images with their captions, like another generator's output."""
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
    assert head == "12 samples, 16 real images"
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
    assert "empty has no images" in refused(capsys, config_file, "--images", empty)
    prompts.write_text(json.dumps({"prompts": ["a cat"] * COUNT}))
    (pictures / "03.png").write_bytes(b"no picture")
    assert "03.png can't be read" in refused(capsys, config_file, "--images", pictures)


def scores(config_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(config_file), "--images", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_names_of_images_change_no_score(
    config_file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.png to 11.png sort as 0, 1, 10, 11, 2, ...; the prompts stay with their images."""
    expected = scores(config_file, pictures, capsys)
    for file in sorted(pictures.glob("*.png")):
        file.rename(pictures / f"{int(file.stem)}.png")
    assert scores(config_file, pictures, capsys) == expected
    listing = json.loads((pictures / "prompts.json").read_text())
    names = [f"{k}.png" for k in range(COUNT)]
    by_name = {key: dict(zip(names, values, strict=True)) for key, values in listing.items()}
    (pictures / "prompts.json").write_text(json.dumps(by_name, sort_keys=True))
    assert scores(config_file, pictures, capsys) == expected


def test_images_are_scored_as_training_reads_them(
    config_file: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transparent, rotated, palette and larger files of the same images have the same scores."""
    expected = scores(config_file, pictures, capsys)
    for number, file in enumerate(sorted(pictures.glob("*.png"))):
        picture = Image.open(file).convert("RGB")
        if number % 4 == 0:
            picture.transpose(Image.Transpose.ROTATE_90).save(file, exif=oriented(6))
        elif number % 4 == 1:
            clear = picture.convert("RGBA")
            clear.putalpha(picture.convert("L").point(lambda value: 255 * (value < 255)))
            pixels = [(0, 0, 0, 0) if pixel[3] == 0 else pixel for pixel in clear.get_flattened_data()]
            clear.putdata([(*pixel[:3], pixel[3]) for pixel in pixels])
            white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
            assert white.tobytes() == picture.tobytes()
            clear.save(file)
        elif number % 4 == 2:
            wide = Image.new("RGB", (64, 32), (255, 0, 255))
            wide.paste(picture, (16, 0))  # the central square is the image
            wide.save(file)
    assert scores(config_file, pictures, capsys) == expected


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_images_of_another_size_are_resized_and_counted(
    config_file: Path, pictures: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for file in sorted(pictures.glob("*.png"))[:5]:
        Image.open(file).resize((200, 300)).save(file)
    assert scores(config_file, pictures, capsys)["samples"] == COUNT
    assert "the central squares of 5 of 12 images were resized to 32 x 32" in caplog.text
