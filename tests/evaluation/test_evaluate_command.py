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
    """Return the file of a complete configuration, without a trained run."""
    path = tmp_path_factory.mktemp("evaluate") / "config.yaml"
    evaluation = dataclasses.replace(smoke_config.evaluation, metrics=("clip_fd", "clip_score", "class_accuracy"))
    save_config(dataclasses.replace(smoke_config, evaluation=evaluation), path)
    return path


@pytest.fixture
def image_folder(smoke_config: Config, tmp_path: Path) -> Path:
    """Write real images with their captions, like another generator's output."""
    data, folder = build_dataset(smoke_config.data, "val"), tmp_path / "images"
    folder.mkdir()
    items = [data[i] for i in range(COUNT)]
    for number, item in enumerate(items):
        Image.fromarray(item.image).save(folder / f"{number:02}.png")
    listing = {"prompts": [item.caption for item in items], "labels": [item.label for item in items]}
    (folder / "prompts.json").write_text(json.dumps(listing))
    return folder


def test_images_of_another_generator_are_scored(
    config_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", str(config_file), "--images", str(image_folder)]) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head == "12 samples, 16 real images"
    assert [line.split()[0] for line in lines] == ["clip_fd", "clip_score", "class_accuracy"]
    assert "floor " in lines[0]
    assert "on score-clip@" in lines[0]
    assert last.startswith("Fewer samples than features: clip_fd (128).")


def test_json_equals_the_functions_result(config_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(config_file), "--images", str(image_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = load_config(config_file)
    reference = build_dataset(config.data, "train")
    assert found == evaluate_folder(image_folder, reference, config.evaluation, Path(config.cache_dir) / "features")
    assert found["samples"] == COUNT


def rejection(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["evaluate", *map(str, words)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("microdit: ")
    assert len(message.splitlines()) == 1
    return message


def test_errors_are_one_line(
    config_file: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere is not a folder" in rejection(capsys, config_file, "--images", tmp_path / "nowhere")
    assert "no.yaml: no such file" in rejection(capsys, tmp_path / "no.yaml", "--images", image_folder)
    assert "--samples" in rejection(capsys, config_file, "--images", image_folder, "--samples", "4")
    assert "model.safetensors: no such file" in rejection(capsys, config_file)
    prompts = image_folder / "prompts.json"
    prompts.write_text(json.dumps({"prompts": ["a cat"] * COUNT, "labels": 3}))
    assert "'labels' must be a list" in rejection(capsys, config_file, "--images", image_folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "prompts.json").write_text(json.dumps({"prompts": []}))
    assert "empty has no images" in rejection(capsys, config_file, "--images", empty)
    prompts.write_text(json.dumps({"prompts": ["a cat"] * COUNT}))
    (image_folder / "03.png").write_bytes(b"not an image")
    assert "03.png can't be read" in rejection(capsys, config_file, "--images", image_folder)


def scores(config_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", str(config_file), "--images", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_scores_do_not_depend_on_file_names(
    config_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.png to 11.png sort as 0, 1, 10, 11, 2, ...; the prompts stay with their images."""
    expected = scores(config_file, image_folder, capsys)
    for file in sorted(image_folder.glob("*.png")):
        file.rename(image_folder / f"{int(file.stem)}.png")
    assert scores(config_file, image_folder, capsys) == expected
    listing = json.loads((image_folder / "prompts.json").read_text())
    names = [f"{k}.png" for k in range(COUNT)]
    by_name = {key: dict(zip(names, values, strict=True)) for key, values in listing.items()}
    (image_folder / "prompts.json").write_text(json.dumps(by_name, sort_keys=True))
    assert scores(config_file, image_folder, capsys) == expected


def test_images_are_scored_as_training_reads_them(
    config_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transparent, rotated, palette and larger files of the same images have the same scores."""
    expected = scores(config_file, image_folder, capsys)
    for number, file in enumerate(sorted(image_folder.glob("*.png"))):
        image = Image.open(file).convert("RGB")
        if number % 4 == 0:
            image.transpose(Image.Transpose.ROTATE_90).save(file, exif=oriented(6))
        elif number % 4 == 1:
            clear = image.convert("RGBA")
            clear.putalpha(image.convert("L").point(lambda value: 255 * (value < 255)))
            pixels = [(0, 0, 0, 0) if pixel[3] == 0 else pixel for pixel in clear.get_flattened_data()]
            clear.putdata([(*pixel[:3], pixel[3]) for pixel in pixels])
            white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
            assert white.tobytes() == image.tobytes()
            clear.save(file)
        elif number % 4 == 2:
            wide = Image.new("RGB", (64, 32), (255, 0, 255))
            wide.paste(image, (16, 0))  # the central square is the image
            wide.save(file)
    assert scores(config_file, image_folder, capsys) == expected


def oriented(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def test_images_of_another_size_are_resized_and_counted(
    config_file: Path, image_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for file in sorted(image_folder.glob("*.png"))[:5]:
        Image.open(file).resize((200, 300)).save(file)
    assert scores(config_file, image_folder, capsys)["samples"] == COUNT
    assert "the central squares of 5 of 12 images were resized to 32 x 32" in caplog.text
