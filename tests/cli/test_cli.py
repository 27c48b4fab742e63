"""Test the `microdit` command: a run, its images and scores, and one-line errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microdit.cli.main import main
from microdit.config.schema import Config, load_config, save_config
from microdit.data.registry import build_dataset


@pytest.fixture(scope="module")
def run_folder(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished smoke run, trained through the command."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    config = dataclasses.replace(
        smoke_config,
        output_dir=str(folder),
        evaluation=dataclasses.replace(smoke_config.evaluation, samples=8, metrics=("clip_fd", "clip_score")),
    )
    path = folder.parent / "config.yaml"
    save_config(config, path)
    assert main(["train", str(path)]) == 0
    return folder


def test_a_run_leaves_everything_behind(run_folder: Path):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert {
        "final/clip_fd",
        "final/clip_fd_floor",
        "final/clip_score",
        "final/val_loss",
        "cost/train_flops",
    } <= metrics.keys()
    prompts = json.loads((run_folder / "samples" / "prompts.json").read_text())
    with Image.open(run_folder / "samples" / "final.png") as strip:
        assert strip.size == (prompts["tile"] * len(prompts["prompts"]), prompts["tile"])


def test_a_stored_configuration_runs_again_to_the_same_result(run_folder: Path, tmp_path: Path):
    assert main(["train", str(run_folder / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first = json.loads((run_folder / "metrics.json").read_text())
    second = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert {k: v for k, v in first.items() if k.startswith("final/")} == {
        k: v for k, v in second.items() if k.startswith("final/")
    }


def test_captions_are_drawn(run_folder: Path, tmp_path: Path):
    out = tmp_path / "cats.png"
    words = ["sample", str(run_folder), "a cat", "two dogs", "--count", "3", "--steps", "2", "--out", str(out)]
    assert main(words) == 0
    with Image.open(out) as picture:
        assert picture.size == (3 * 32, 2 * 32)
        assert np.asarray(picture).std() > 1


def test_guidance_can_be_limited_on_the_command_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def draw(*words: str) -> bytes:
        out = tmp_path / "cat.png"
        assert main(["sample", str(run_folder), "a cat", "--count", "1", "--out", str(out), *words]) == 0
        return out.read_bytes()

    guided = draw("--guidance", "50")
    assert draw("--guidance", "50", "--guidance-interval", "0", "inf") == guided
    limited = draw("--guidance", "50", "--guidance-interval", "1", "10")  # none of the levels, 80 and 0.002
    assert limited == draw() != guided
    words = ["sample", str(run_folder), "a cat", "--guidance-interval", "3", "2"]
    assert "'sampler.guidance_interval.sigma_high' is 2.0; it must be above" in failing(capsys, *words)
    words = ["sample", str(run_folder), "a cat", "--guidance", "3", "--guidance-by", "path_drop"]
    assert "the network was not trained without its middle blocks" in failing(capsys, *words)
    assert "'sampler.guidance' is 1" in failing(capsys, *words[:3], *words[5:])


def test_a_finished_run_is_scored_again(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run_folder)]) == 0
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    stored = json.loads((run_folder / "metrics.json").read_text())
    assert float(printed["clip_fd"]) == pytest.approx(stored["final/clip_fd"], rel=1e-3)
    assert float(printed["val_loss"]) == pytest.approx(stored["final/val_loss"], rel=1e-3)


def test_a_run_is_scored_again_as_json_and_mistakes_are_named(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["evaluate", str(run_folder), "--json"]) == 0
    stored = json.loads((run_folder / "metrics.json").read_text())
    stored = {k.removeprefix("final/"): v for k, v in stored.items() if k.startswith("final/")}
    assert json.loads(capsys.readouterr().out) == stored
    assert "only 24 held-out captions" in failing(capsys, "evaluate", str(run_folder), "--samples", "25")


def test_the_data_can_be_looked_at(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "sheet.png"
    assert main(["data", str(run_folder / "config.yaml"), "--count", "7", "--out", str(out)]) == 0
    with Image.open(out) as sheet:
        assert sheet.size == (6 * 32, 2 * 32)
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:3].strip().isdigit()]) >= 7


def test_prompts_of_a_file_are_drawn_and_scored(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Held-out captions from a file give the run's scores; other prompts, others."""
    config = load_config(run_folder / "config.yaml")
    held_out = build_dataset(config.data, "val")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(held_out[i].caption for i in range(8)))

    def scored(*words: str) -> dict[str, float]:
        capsys.readouterr()
        assert main(["evaluate", str(run_folder), "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    own = json.loads((run_folder / "metrics.json").read_text())
    found = scored("--prompts", str(prompts))
    assert {f"final/{name}": value for name, value in found.items()}.items() <= own.items()
    coco = tmp_path / "captions.json"
    entries = [{"image_id": i, "caption": f"a dog {i}"} for i in range(6)]
    coco.write_text(json.dumps({"annotations": entries}))
    metrics = ("--metrics", "clip_score", "class_accuracy", "precision")
    found = scored("--prompts", str(coco), "--samples", "6", "--reference-count", "12", *metrics)
    assert found.keys() == {
        "samples",
        "reference_images",
        "precision",
        "precision_real",
        "clip_score",
        "clip_score_real",
        "val_loss",
    }
    assert (found["samples"], found["reference_images"]) == (6, 12)
    words = ["evaluate", str(run_folder), "--prompts", str(coco)]
    assert "'evaluation.samples' is 8, but 'evaluation.prompts'" in failing(capsys, *words)
    assert "ViT-B-32: no such folder" in failing(capsys, "evaluate", str(run_folder), "--clip", "ViT-B-32")
    words = ["evaluate", str(run_folder), "--feature-net", "inception-v3", "--feature-weights", "no.pth"]
    assert "no.pth: no such file" in failing(capsys, *words)


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("microdit: ")
    assert len(message.strip().splitlines()) == 1
    return message


def test_mistakes_in_a_configuration_cost_nothing(
    smoke_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    save_config(dataclasses.replace(smoke_config, output_dir=str(tmp_path / "run")), path)
    good = path.read_text()
    for old, new, words in [
        ("batch_size: 8", "batchsize: 8", ["'training.batchsize'", "'batch_size'", "config.yaml"]),
        ("in_channels: 4", "in_channels: 16", ["'model.in_channels' is 16", "channels is 4"]),
        ("input_size: 8", "input_size: 16", ["'model.input_size' is 16", "is 8"]),
        ("path: builtin", "path: /no/such/vae", ["autoencoder.path", "/no/such/vae"]),
        ("samples: 0", "samples: 500", ["'evaluation.samples' is 500", "24"]),
        ("name: emoji-captions", "name: emoji-caption", ["emoji-captions"]),
        ("accumulation: 1", "accumulation: 3", ["'training.batch_size'", "'training.accumulation'"]),
    ]:
        assert old in good
        path.write_text(good.replace(old, new, 1))
        message = failing(capsys, "train", str(path))
        for word in words:
            assert word in message, (new, message)
    assert not (tmp_path / "run").exists()


def test_missing_things_are_named(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "confg.yaml: no such file" in failing(capsys, "train", str(tmp_path / "confg.yaml"))
    (tmp_path / "half").mkdir()
    save_config(load_config(run_folder / "config.yaml"), tmp_path / "half" / "config.yaml")
    assert "model.safetensors: no such file" in failing(capsys, "sample", str(tmp_path / "half"), "a cat")
    for caption in ("a \udcff cat", "a \0 cat"):  # the first is Python's escape of a byte that is not UTF-8
        assert "caption 2: the text" in failing(capsys, "sample", str(run_folder), "a dog", caption)


def test_the_released_small_model_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    reference = Path(__file__).parents[1] / "model" / "reference"
    words = ["import", str(reference / "small.safetensors"), "--config", str(reference / "small.json")]
    assert main([*words, "--out", str(tmp_path / "small")]) == 0
    assert "parameters in" in capsys.readouterr().out
    assert (tmp_path / "small" / "model.safetensors").is_file()
    wrong = failing(capsys, "import", str(reference / "small.safetensors"), "--out", str(tmp_path / "xl"))
    assert "small.safetensors" in wrong


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "microdit", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in ("train", "sample", "evaluate", "import", "data", "finetune"):
        assert command in done.stdout
