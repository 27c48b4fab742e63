"""Test Inception-v3 and DINOv2 from files: torch-fidelity's numbers, accurate names, clear errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from real_formats import dinov2_weights, inception_weights
from scipy.linalg import svdvals
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from microdit.common.errors import ConfigError
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages
from microdit.data.registry import build_dataset
from microdit.encoders import pretrained_weights
from microdit.encoders.pretrained_weights import PUBLISHED, Published
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.feature_networks import feature_net
from microdit.evaluation.reference import RealImages, ReferenceSplit, SampledImages
from microdit.evaluation.report import check_scoring, describe, feature_net_name
from microdit.evaluation.score import score

SAMPLES, REFERENCE = 4, 5
DATA = DataConfig(max_objects=1, train_size=10, val_size=SAMPLES, resolution=32)
CONFIG = EvalConfig(
    feature_net="inception-v3",
    metrics=("fd", "kid", "precision", "recall"),
    reference_count=REFERENCE,
    kid_subsets=3,
    kid_subset_size=4,
    seed=3,
)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture(scope="module")
def reference() -> CaptionedImages:
    return build_dataset(DATA, "train")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    data = build_dataset(DATA, "val")
    return np.stack([data[i].image for i in range(SAMPLES)])


def test_scores_on_inception_equal_torch_fidelitys(
    inception_file: Path, reference: CaptionedImages, images: np.ndarray, tmp_path: Path
) -> None:
    config = replace(CONFIG, feature_weights=str(inception_file))
    found = score(images, ["a cat"] * SAMPLES, [-1] * SAMPLES, reference, config, tmp_path)
    real = RealImages(reference, ReferenceSplit(reference, SAMPLES, REFERENCE).reference)
    own = torch_fidelity.calculate_metrics(
        input1=SampledImages(images),
        input2=real,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_file),
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=3,
        kid_subset_size=4,
        rng_seed=3,
        cuda=False,
        input1_cache_name="one",
        input2_cache_name="two",
        cache_root=str(tmp_path / "own"),
        verbose=False,
        save_cpu_ram=True,
    )
    for name, key in {"kid": "kernel_inception_distance_mean", "precision": "precision", "recall": "recall"}.items():
        assert found[name] == pytest.approx(own[key], rel=1e-6, abs=1e-7)
    # torch-fidelity adds roots of 2048 eigenvalues (2040 are rounding of 0) and float32 means: 4.5e-6 measured here.
    assert found["fd"] == pytest.approx(own["frechet_inception_distance"], rel=1e-4)
    assert {"fd_floor", "kid_floor", "precision_real", "recall_real"} < set(found)

    stored = [tmp_path / "own" / f"{name}-inception-v3-compat-features-2048.pt" for name in ("one", "two")]
    a, b = (torch.load(path).double().numpy() for path in stored)
    assert (a.shape, b.shape) == ((SAMPLES, 2048), (REFERENCE, 2048))
    gap = a.mean(0) - b.mean(0)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b))
    independent = gap @ gap + (a**2).sum() + (b**2).sum() - 2 * svdvals(a @ b.T).sum()
    assert found["fd"] == pytest.approx(independent, rel=1e-6)


def test_only_the_published_weights_are_called_fid(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, feature_weights=str(inception_file))
    values = {"samples": 5.0, "reference_images": 6.0, "fd": 3.0, "fd_floor": 1.0, "kid": 0.5}
    assert feature_net_name(config).startswith("unpublished-inception-v3@")
    assert "FID" not in describe(values, config)
    begins = feature_net(config).digest[:8]
    monkeypatch.setitem(PUBLISHED, "inception-v3", Published(URL_INCEPTION_V3, begins))  # type: ignore[arg-type]
    assert feature_net_name(config).startswith(f"inception-v3@{begins}+score-clip@")
    lines = describe(values, config).splitlines()
    assert lines[1].split()[:2] == ["FID", "3"]
    assert f"floor 1, FID on inception-v3@{begins}, 2048 features" in lines[1]
    assert lines[2].startswith("KID ")
    assert "FID (2048)" in lines[-1]


def test_published_weights_are_torch_fidelitys() -> None:
    assert PUBLISHED["inception-v3"].url == URL_INCEPTION_V3
    assert PUBLISHED["inception-v3"].name == "weights-inception-2015-12-05-6726825d.pth"
    assert f"-{PUBLISHED['inception-v3'].digest}." in URL_INCEPTION_V3


@pytest.mark.parametrize("net", ["inception-v3", "dinov2"])
def test_missing_weights_are_reported_with_url_and_target(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained_weights, "torch_hub_folder", lambda: tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    config = replace(CONFIG, feature_net=net)
    with pytest.raises(ConfigError) as caught:
        check_scoring(config)
    published = PUBLISHED[net]
    for words in ("'evaluation.feature_weights' is null", str(tmp_path / published.name), published.url):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=f"'evaluation.feature_weights': .*no.pth: no such file; .*{published.name}"):
        check_scoring(replace(config, feature_weights=str(tmp_path / "no.pth")))
    (tmp_path / published.name).touch()  # the expected location
    with pytest.raises(ConfigError, match=f"{published.name} (is not torch-fidelity's|can't be read)"):
        check_scoring(config)


def test_a_url_is_downloaded_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained_weights, "torch_hub_folder", lambda: tmp_path / "hub")
    source = tmp_path / "net-0123456789.pth"
    source.write_bytes(b"weights")
    config = replace(CONFIG, feature_weights=source.as_uri())
    with pytest.raises(ConfigError, match=r"can't be downloaded to .*invalid hash value"):
        feature_net(config)
    assert not (tmp_path / "hub" / source.name).exists()
    source = source.rename(tmp_path / "net.pth")
    config = replace(CONFIG, feature_weights=source.as_uri())
    first = feature_net(config)
    source.unlink()
    assert feature_net(config) == first
    assert first.weights == tmp_path / "hub" / "net.pth"


def test_files_of_another_layout_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"pos_embed": torch.zeros(1, 2, 100)}, path)
    with pytest.raises(ConfigError, match=r"other.pth is not torch-fidelity's Inception-v3: it has no 'Mixed_7c"):
        check_scoring(replace(CONFIG, feature_weights=str(path)))
    with pytest.raises(ConfigError, match=r"other.pth: a ViT of width 100; DINOv2 without registers has 384"):
        check_scoring(replace(CONFIG, feature_net="dinov2", feature_weights=str(path)))


def test_scores_on_dinov2(reference: CaptionedImages, images: np.ndarray, tmp_path: Path) -> None:
    path = dinov2_weights(tmp_path / "dinov2_vits14_pretrain.pth")
    config = replace(CONFIG, feature_net="dinov2", feature_weights=str(path), metrics=("fd", "recall"))
    assert feature_net_name(config).startswith("dinov2-vit-s-14@")
    same = np.stack([reference[int(row)].image for row in ReferenceSplit(reference, REFERENCE, REFERENCE).reference])
    given = (["a cat"] * len(same), [-1] * len(same), reference, config, tmp_path / "cache")
    found = score(same, *given)
    assert found["fd"] == pytest.approx(0, abs=1e-6 * found["fd_floor"])
    assert found["recall"] == 1
    assert score(255 - same, *given)["fd"] > 0.01 * found["fd_floor"]
