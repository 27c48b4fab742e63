"""Test scores with a user's CLIP: same loader, found in a folder or a cache, identified by content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from microdit.common.errors import ConfigError
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.encoders.config import SCORE_CLIP
from microdit.encoders.open_clip_checkpoint import CONFIG
from microdit.evaluation.clip import clip_folder, clip_title
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.report import check_scoring, describe, feature_net_name
from microdit.evaluation.score import score

DATA = DataConfig(max_objects=1, train_size=24, val_size=8)
CONFIG_ = EvalConfig(reference_count=16, metrics=("clip_fd", "clip_score", "class_accuracy"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a copy of the built-in CLIP."""
    return Path(shutil.copytree(SCORE_CLIP, tmp_path / "mine"))


def test_a_folder_with_the_builtin_weights_has_the_builtin_scores(folder: Path, tmp_path: Path) -> None:
    items = [build_dataset(DATA, "val")[i] for i in range(8)]
    given = (np.stack([i.image for i in items]), [i.caption for i in items], [i.label for i in items])
    reference = build_dataset(DATA, "train")
    config = replace(CONFIG_, clip=str(folder))
    builtin, own = (score(*given, reference, c, tmp_path / "cache") for c in (CONFIG_, config))
    assert own == builtin
    assert "on clip-resnet-20@" in describe(own, config)
    assert "+clip-resnet-20@" in feature_net_name(config)


def test_titles_have_the_architecture(folder: Path) -> None:
    def title(**vision: object) -> str:
        settings = json.loads((SCORE_CLIP / CONFIG).read_text())
        settings["model_cfg"]["vision_cfg"] = vision
        (folder / CONFIG).write_text(json.dumps(settings))
        return clip_title(folder)

    assert title(layers=12, width=768, patch_size=32) == "clip-vit-b-32"
    assert title(layers=32, width=1280, patch_size=14) == "clip-vit-h-14"
    assert title(layers=3, width=96, patch_size=8) == "clip-96-8"
    assert title(timm_model_name="vit+so400m/x") == "clip-vit-so400m-x"


def test_open_clip_names_are_looked_up_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = replace(CONFIG_, clip="ViT-B-32-quickgelu/openai")
    words = r"hf download timm/vit_base_patch32_clip_224.openai open_clip_config.json open_clip_model.safetensors"
    with pytest.raises(ConfigError, match=f"'evaluation.clip': ViT-B-32-quickgelu/openai is not in .*hub: .*{words}"):
        check_scoring(config)
    kept = tmp_path / "hub" / "models--timm--vit_base_patch32_clip_224.openai"
    shutil.copytree(folder, kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    check_scoring(config)
    assert clip_folder("hf-hub:timm/vit_base_patch32_clip_224.openai") == kept / "snapshots" / "abc"
    assert feature_net_name(config) == feature_net_name(replace(CONFIG_, clip=str(folder)))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere/my/clip", "'evaluation.clip': nowhere/my/clip: no such folder"),
        ("ViT-B-32", "ViT-B-32: no such folder"),
        ("ViT-B-32/opnai", "did you mean 'openai'"),
        ("ViT-B-32/openai", "did you mean 'ViT-B-32-quickgelu/openai'"),
        ("ViT-B-33/openai", "nor an open_clip model; did you mean"),
    ],
)
def test_wrong_names_are_rejected_before_any_computation(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_scoring(replace(CONFIG_, clip=path))


def test_a_folder_without_weights_is_rejected(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"'evaluation.clip': .*mine has neither open_clip_model.safetensors"):
        check_scoring(replace(CONFIG_, clip=str(folder)))


def test_without_samples_no_network_is_needed(tmp_path: Path) -> None:
    config = replace(CONFIG_, samples=0, clip=str(tmp_path / "nowhere"))
    check_scoring(config)
    assert feature_net_name(config) == "none"
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        check_scoring(replace(config, samples=8))
