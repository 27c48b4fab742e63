"""Test alignment with DINOv2: features against timm's, fingerprints, and errors before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.v2.functional as vision
from real_formats import dinov2_weights
from torch import Tensor

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.loss import build_alignment
from microdit.alignment.patch_encoders import PatchEncoder, build_encoder
from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.config.identity import identity_mapping, trial_key
from microdit.config.schema import Config
from microdit.data.registry import build_dataset
from microdit.encoders import pretrained_weights
from microdit.encoders.pretrained_weights import PUBLISHED
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run
from sweeps.cli import main
from sweeps.config.hydra_compose import compose_config
from sweeps.config.study import load_study
from sweeps.planning.prepare import prepare_trials
from sweeps.planning.trials import plan_trials


class Plain(PatchEncoder):
    """Encode patches without weights, as a plugin."""

    width = 3
    fingerprint = "plain"


class Weighted(Plain):
    """Encode patches with weights from a file, as a plugin."""

    takes_weights = True

    @classmethod
    def from_config(cls, config: AlignmentConfig, side: int, device: torch.device | str) -> PatchEncoder:
        encoder = cls(side, device)
        encoder.fingerprint = f"weighted-{config.weights}"  # type: ignore[misc]
        return encoder


class Log(NullLogger):
    """Record the curve of the alignment."""

    def __init__(self) -> None:
        self.alignment: dict[int, float] = {}

    def metrics(self, step: int, values: dict) -> None:
        if "train/alignment" in values:
            self.alignment[step] = values["train/alignment"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dinov2_weights(tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty hub folder, with downloads disabled."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(pretrained_weights, "torch_hub_folder", lambda: tmp_path / "hub")
    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    return tmp_path / "hub"


def composed(tmp_path: Path, *words: str) -> Config:
    own = [f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'run'}", "evaluation.samples=0"]
    few = ["data.train_size=8", "data.val_size=8", "training.val_images=8", "training.steps=2"]
    return compose_config(["scale=smoke", "alignment.encoder=dinov2", *own, *few, *words])


def encoded(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def timm_features(path: Path, images: Tensor, side: int) -> Tensor:
    """Return the normalized patch tokens of timm's model with DINOv2's positions, (B, E, side / 14, side / 14)."""
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=side)
    stored = torch.load(path, weights_only=True)
    own, patches = stored["pos_embed"], side // 14
    grid = own[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=(patches + 0.1) / 37, mode="bicubic")
    stored["pos_embed"] = torch.cat([own[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    del stored["mask_token"]
    network.load_state_dict(stored)
    x = images.permute(0, 3, 1, 2).float() / 255
    x = vision.resize(x, [side, side], vision.InterpolationMode.BICUBIC, antialias=True)
    x = vision.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        [found] = network.eval().get_intermediate_layers(x, n=1, reshape=True, norm=True)
    return found


@pytest.mark.parametrize(("grid", "side", "pixels"), [(16, 224, 300), (18, 252, 64), (4, 224, 64)])
def test_features_equal_those_of_timms_model(small: Path, grid: int, side: int, pixels: int) -> None:
    """Networks for several grid sizes can be used in one process."""
    images = torch.randint(0, 256, (2, pixels, pixels, 3), generator=generator(0, "images"), dtype=torch.uint8)
    expected = timm_features(small, images, side)
    if grid < 16:
        expected = vision.resize(expected, [grid, grid], vision.InterpolationMode.BILINEAR, antialias=True)
    encoder = build_encoder(AlignmentConfig("dinov2", weights=str(small)), grid)
    found = encoder.encode(images)
    assert found.shape == (2, grid**2, 384) == (2, grid**2, encoder.width)
    torch.testing.assert_close(found.unflatten(1, (grid, grid)).permute(0, 3, 1, 2), expected, rtol=1e-3, atol=1e-5)
    assert (found[0] - found[1]).abs().mean() > 1e-3, "equal features would pass the comparison"


def test_fingerprints_depend_on_weights_and_pixels(small: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(torch.load(small, weights_only=True) | {"mask_token": torch.ones(1, 384)}, other)

    def fingerprint(path: Path, grid: int) -> str:
        return build_encoder(AlignmentConfig("dinov2", weights=str(path)), grid).fingerprint

    assert fingerprint(small, 4) == fingerprint(small, 16)  # the grid is named beside it
    assert len({fingerprint(path, grid) for path in (small, other) for grid in (16, 32, 64)}) == 6


def test_a_run_is_aligned(small: Path, tmp_path: Path) -> None:
    log = Log()
    config = composed(tmp_path, f"alignment.weights={small}")
    run(config, log)
    assert list(log.alignment) == [1, 2]
    assert all(-1 <= value <= 1 for value in log.alignment.values())
    [header] = (tmp_path / "cache" / "patches").glob("*/header.json")
    assert json.loads(header.read_text())["encoder"].startswith("dinov2-")
    features = np.load(header.with_name("features.npy"))
    assert features.shape == (8, 16, 384)
    image = torch.from_numpy(build_dataset(config.data, "train")[3].image)
    expected = build_encoder(config.alignment, 4).encode(image.unsqueeze(0))[0]
    torch.testing.assert_close(torch.from_numpy(features[3]).float(), expected, rtol=2e-3, atol=2e-3)


def test_missing_weights_are_reported_before_encoding(tmp_path: Path, hub: Path) -> None:
    name = PUBLISHED["dinov2"].name
    with pytest.raises(ConfigError) as caught:
        run(composed(tmp_path))
    for words in (
        "'alignment.weights' is null",
        "'alignment.encoder' dinov2",
        str(hub / name),
        PUBLISHED["dinov2"].url,
    ):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=rf"'alignment\.weights': .*no\.pth: no such file; .*{name}"):
        run(composed(tmp_path, f"alignment.weights={tmp_path / 'no.pth'}"))
    assert not encoded(tmp_path)


def test_a_launch_reports_missing_weights_before_encoding(tmp_path: Path, hub: Path) -> None:
    (trial, *_) = plan_trials(load_study("alignment", "smoke"), [])
    config = composed(tmp_path)
    plain = dataclasses.replace(config, alignment=AlignmentConfig())
    with pytest.raises(ConfigError, match=r"'alignment\.weights' is null"):
        prepare_trials([dataclasses.replace(trial, config=c) for c in (plain, config)], tmp_path / "runs")
    assert not encoded(tmp_path)


def test_other_files_are_rejected_before_encoding(tmp_path: Path) -> None:
    for tensors, words in (
        ({"pos_embed": torch.zeros(1, 1370, 384)}, "not DINOv2's small ViT: .*Missing key"),
        ({"pos_embed": torch.zeros(1, 5, 100)}, "a ViT of width 100; DINOv2 without registers has 384"),
        ({"weight": torch.zeros(1)}, "not a checkpoint of DINOv2"),
    ):
        torch.save(tensors, tmp_path / "other.pth")
        with pytest.raises(ConfigError, match=rf"'alignment\.weights': .*other\.pth.*{words}"):
            run(composed(tmp_path, f"alignment.weights={tmp_path / 'other.pth'}"))
    assert not encoded(tmp_path)


def test_a_plan_needs_no_file(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["plan", "study=alignment", "scale=paper", "measure=false"]) == 0
    assert "dinov2_0.5 " in capsys.readouterr().out
    config = composed(tmp_path)
    for given in (None, PUBLISHED["dinov2"].url):
        alignment = dataclasses.replace(config.alignment, weights=given)
        assert build_alignment(alignment, config.model, seed=None).features == 1024  # ViT-L's


def test_the_width_comes_from_the_file(small: Path, tmp_path: Path, hub: Path) -> None:
    config = composed(tmp_path, f"alignment.weights={small}")
    assert build_alignment(config.alignment, config.model, seed=None).features == 384
    hub.mkdir()
    (hub / PUBLISHED["dinov2"].name).symlink_to(small)
    assert build_alignment(composed(tmp_path).alignment, config.model, seed=None).features == 384


def test_weights_are_identified_by_content(small: Path, tmp_path: Path, hub: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(small.read_bytes())
    one, same = (composed(tmp_path, f"alignment.weights={path}") for path in (small, copy))
    before = trial_key(one)
    assert before == trial_key(same) != trial_key(composed(tmp_path))
    copy.write_bytes(b"other")
    assert trial_key(same) != before
    assert "weights" not in identity_mapping(composed(tmp_path))["alignment"], "keys of earlier runs stay valid"


@pytest.mark.parametrize("encoder", ["none", "efficientnet-lite0", f"{__name__}.Plain"])
def test_weights_of_an_encoder_that_takes_none_are_rejected(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, f"plugins=[{__name__}]", f"alignment.encoder={encoder}", "alignment.weights=a.pth")
    for words in ("'alignment.weights' is 'a.pth'", f"'alignment.encoder' is {encoder}", "null", "to dinov2"):
        assert words in str(caught.value)


def test_a_plugin_may_take_weights(tmp_path: Path) -> None:
    words = [f"plugins=[{__name__}]", f"alignment.encoder={__name__}.Weighted", "alignment.weights=mine"]
    assert build_encoder(composed(tmp_path, *words).alignment, 4).fingerprint == "weighted-mine"
    with pytest.raises(ConfigError, match=r"composed', which is no class derived from .*PatchEncoder"):
        composed(tmp_path, words[0], f"alignment.encoder={__name__}.composed")
    with pytest.raises(ConfigError, match=r"'alignment\.weights' is empty"):
        composed(tmp_path, "alignment.weights=''")
