"""Test that weights are used with the text features of their training."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from real_formats import SDXL, autoencoder_folder
from safetensors.torch import load_file, save_file

import microdit as md
from microdit.cli.main import main
from microdit.common.errors import ConfigError
from microdit.common.files.tensors import write_tensors
from microdit.config.schema import Config, load_config, save_config
from microdit.diffusion import EDM, SamplerConfig
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import AutoencoderConfig, TextConfig
from microdit.encoders.text import build_text_encoder
from microdit.encoders.text_record import RELEASED, check_features, recorded_text, text_record
from microdit.model import load_imported_folder
from microdit.pipeline.generate import generate
from microdit.training.init_weights import check_initial

REFERENCE = Path(__file__).parents[1] / "model" / "reference"
HUB = "hf-hub:apple/DFN5B-CLIP-ViT-H-14-378"


def clip_folder(folder: Path, seed: int = 0, **text: Any) -> Path:
    """Return a random CLIP of open_clip, as wide as the small model's captions."""
    settings = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3, **text},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(seed)
    weights = open_clip.CLIP(**settings).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a released checkpoint imported with local copies of its encoders."""
    root = tmp_path_factory.mktemp("imported")
    clip_folder(root / "clip")
    autoencoder_folder(root / "vae", **SDXL)
    words = ["import", str(REFERENCE / "small.safetensors"), "--config", str(REFERENCE / "small.json")]
    words += ["--text", str(root / "clip"), "--autoencoder", str(root / "vae"), "--out", str(root / "model")]
    assert main(words) == 0
    return root


def changed(folder: Path, out: Path, **text: str) -> Path:
    """Return a copy of a folder whose configuration names other text features."""
    shutil.copytree(folder, out)
    config = load_config(out / "config.yaml")
    save_config(dataclasses.replace(config, text=dataclasses.replace(config.text, **text)), out / "config.yaml")
    return out


def rejection(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    return capsys.readouterr().err


def test_an_imported_model_draws_with_the_features_it_was_trained_on(home: Path, tmp_path: Path) -> None:
    words = [
        "sample",
        str(home / "model"),
        "a red car",
        "--count",
        "2",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "a.png"),
    ]
    assert main(words) == 0
    with Image.open(tmp_path / "a.png") as picture:
        drawn = np.asarray(picture)
    features = build_text_encoder(TextConfig(str(home / "clip"), "last")).encode(["a red car"])
    expected = generate(
        EDM(load_imported_folder(home / "model"), 0.9).eval(),
        build_autoencoder(AutoencoderConfig(str(home / "vae"))),
        features.repeat_interleave(2, 0),
        SamplerConfig(steps=2, guidance=5.0),  # the released guidance
        0,
    )
    assert expected.shape == (2, 64, 64, 3)
    assert np.array_equal(drawn, np.concatenate(list(expected), 1))


def test_other_features_are_rejected_by_name(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(home / "model", tmp_path / "layer", layer="penultimate")
    message = rejection(capsys, "sample", str(folder), "a cat")
    assert "'text.layer' is penultimate, but" in message
    assert "model.safetensors was trained on features" in message
    assert "set text.layer=last" in message
    other = clip_folder(tmp_path / "other", seed=1)
    folder = changed(home / "model", tmp_path / "weights", path=str(other))
    message = rejection(capsys, "sample", str(folder), "a cat")
    assert f"'text.path' is '{other}', another text encoder" in message
    same = shutil.copytree(home / "clip", tmp_path / "copy")
    folder = changed(home / "model", tmp_path / "same", path=str(same))
    assert main(["sample", str(folder), "a cat", "--steps", "2", "--out", str(tmp_path / "b.png")]) == 0


def test_training_from_weights_keeps_their_features(home: Path, tmp_path: Path) -> None:
    config = load_config(home / "model" / "config.yaml")
    assert Path(config.training.init or "") == home / "model"
    check_initial(config)
    wrong = dataclasses.replace(config, text=dataclasses.replace(config.text, layer="penultimate"))
    with pytest.raises(ConfigError, match=r"'text\.layer' is penultimate, but .* layer 'last'"):
        check_initial(wrong)
    builtin = dataclasses.replace(config, text=TextConfig())
    with pytest.raises(ConfigError, match=r"'text\.path' is 'builtin', another text encoder"):
        check_initial(builtin)


def test_runs_record_their_features(smoke_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(dataclasses.replace(smoke_config, output_dir=str(tmp_path / "run")), tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    record = recorded_text(tmp_path / "run" / "model.safetensors")
    assert record is not None
    assert (record.name, record.layer) == ("builtin", "last")
    other = changed(tmp_path / "run", tmp_path / "other", layer="penultimate")
    for words in (["sample", str(other), "a cat"], ["evaluate", str(other), "--samples", "2"]):
        assert "'text.layer' is penultimate, but" in rejection(capsys, *words)


def test_a_default_import_records_the_released_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(REFERENCE / "small.safetensors"), "--config", str(REFERENCE / "small.json")]
    assert main([*words, "--out", str(tmp_path / "model")]) == 0
    assert HUB in capsys.readouterr().out
    weights = tmp_path / "model" / "model.safetensors"
    record = recorded_text(weights)
    assert record is not None
    assert (record.name, record.layer) == (HUB, "last")
    config = load_config(tmp_path / "model" / "config.yaml")
    assert config.text == TextConfig(HUB, "last")
    assert config.autoencoder.path == "stabilityai/stable-diffusion-xl-base-1.0/vae"
    assert float(load_file(weights)["sigma_data"]) == 0.9
    assert (config.sampler.steps, config.sampler.guidance) == (30, 5.0)
    message = rejection(capsys, *words, "--text", "builtin", "--out", str(tmp_path / "wrong"))
    assert "--text builtin has features of width 128, but the model was trained on 24" in message
    assert not (tmp_path / "wrong").exists()


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Return a file of weights that records the released text features."""
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, text_record(RELEASED, "").facts())
    return path


def test_names_of_the_released_encoder_are_one(released: Path) -> None:
    for path in (HUB, "ViT-H-14-378-quickgelu/dfn5b"):  # open_clip's name for the same repository
        check_features(released, TextConfig(path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TextConfig(HUB, "penultimate"), r"'text\.layer' is penultimate, but"),
        (TextConfig("ViT-H-14-quickgelu/dfn5b"), r"'text\.path' is 'ViT-H-14-quickgelu/dfn5b', another text encoder"),
        (
            TextConfig("hf-hub:apple/DFN5B-CLIP-ViT-H-14"),
            r"'text\.path' is 'hf-hub:apple/DFN5B-CLIP-ViT-H-14', another",
        ),
        (TextConfig("builtin"), r"'text\.path' is 'builtin', another .* set text\.path=hf-hub:apple/DFN5B-CLIP"),
    ],
)
def test_other_published_encoders_are_rejected(released: Path, config: TextConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_features(released, config)


def test_a_local_copy_must_have_the_released_architecture(
    released: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = clip_folder(tmp_path / "small")
    with pytest.raises(ConfigError, match=r"another text encoder \(width 24 instead of 1024, heads 2 instead of 16"):
        check_features(released, TextConfig(str(small)))
    copy = clip_folder(tmp_path / "copy")
    settings = json.loads((copy / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"] |= {"width": 1024, "heads": 16, "layers": 24}
    settings["model_cfg"]["quick_gelu"] = False
    (copy / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"another text encoder \(quick_gelu False instead of True\)"):
        check_features(released, TextConfig(str(copy)))
    settings["model_cfg"]["quick_gelu"] = True
    (copy / "open_clip_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        check_features(released, TextConfig(str(copy)))
    assert "whose weights can't be compared" in caplog.text


def test_weights_without_a_record_are_taken_as_they_are(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "old.safetensors")
    check_features(tmp_path / "old.safetensors", TextConfig())


def test_an_imported_folder_is_a_pipeline(home: Path, tmp_path: Path) -> None:
    pipe = md.Pipeline.from_pretrained(home / "model")
    drawn = pipe(["a red car"], num_samples=2, steps=2)
    assert [image.size for image in drawn] == [(64, 64)] * 2
    pipe.save_pretrained(tmp_path / "saved")
    saved, imported = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", home / "model"))
    assert saved.keys() == imported.keys()
    assert all(torch.equal(saved[name], imported[name]) for name in imported)
    assert recorded_text(tmp_path / "saved" / "model.safetensors") == recorded_text(
        home / "model" / "model.safetensors"
    )
    again = md.Pipeline.from_pretrained(tmp_path / "saved")
    assert again.config == pipe.config
    assert [image.tobytes() for image in again(["a red car"], num_samples=2, steps=2)] == [
        image.tobytes() for image in drawn
    ]


def test_the_resolution_must_fit_the_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(REFERENCE / "small.safetensors"), "--out", str(tmp_path / "model"), "--resolution"]
    assert "--resolution is 500; it must be a multiple of 8" in rejection(capsys, *words, "500")
