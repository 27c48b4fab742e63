"""Test that a process loads frozen networks and data once per version of the files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.encoders.config import TEXT_CLIP, VAE, TextConfig
from microdit.evaluation import feature_extractors
from microdit.pipeline.inputs import build_components
from microdit.pipeline.train_and_evaluate import run


def test_parts_are_kept_until_their_files_change(smoke_config: Config, tmp_path: Path):
    folder = tmp_path / "vae"
    shutil.copytree(VAE, folder)
    config = dataclasses.replace(
        smoke_config, autoencoder=dataclasses.replace(smoke_config.autoencoder, path=str(folder))
    )
    first, second = build_components(config), build_components(config)
    assert second.autoencoder is first.autoencoder
    assert second.text_encoder is first.text_encoder
    assert second.train_images is first.train_images is not first.val_images
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"scaling_factor": 2 * settings["scaling_factor"]}))
    third = build_components(config)
    assert third.autoencoder.fingerprint != first.autoencoder.fingerprint
    assert third.train.fingerprint != first.train.fingerprint
    assert third.text_encoder is first.text_encoder


def test_encoded_captions_need_no_text_encoder(smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = build_components(smoke_config)  # encodes
    shutil.copytree(TEXT_CLIP, tmp_path / "clip")  # not loaded by this process

    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(open_clip, "create_model", never)
    found = build_components(dataclasses.replace(smoke_config, text=TextConfig(str(tmp_path / "clip"))))
    assert found.train.fingerprint == expected.train.fingerprint
    with pytest.raises(ConfigError, match="loaded"):
        found.text_encoder.encode(["a cat"])


def test_a_second_run_loads_nothing_and_scores_the_same(
    smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scored = dataclasses.replace(smoke_config, evaluation=dataclasses.replace(smoke_config.evaluation, samples=8))
    first = run(dataclasses.replace(scored, output_dir=str(tmp_path / "one")))
    loads: list[str] = []

    def never(*names: object, **_: object) -> None:
        loads.append(str(names))
        raise AssertionError("loaded again")

    monkeypatch.setattr(open_clip, "create_model", never)
    monkeypatch.setattr(feature_extractors, "build_lite0", never)
    torch.manual_seed(1)  # loading a network draws from the global random stream; nothing may depend on it
    second = run(dataclasses.replace(scored, output_dir=str(tmp_path / "two")))
    assert not loads
    final = [name for name in first if name.startswith("final/")]
    assert {name: second[name] for name in final} == {name: first[name] for name in final}
