"""Test that scores change in the right direction, agree with independent arithmetic, and record their networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from microdit.common.errors import ConfigError, DataError
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages
from microdit.data.registry import build_dataset
from microdit.evaluation.clip import ScoringClip
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.extensions import BUNDLED_NETS
from microdit.evaluation.feature_extractors import EXTRACTORS, EfficientNetLite0Features
from microdit.evaluation.feature_networks import SCORE_CLIP
from microdit.evaluation.reference import ReferenceSplit
from microdit.evaluation.report import describe, feature_net_name
from microdit.evaluation.score import class_accuracy, score

COUNT = 96
# As many reference images as samples, and one subset of all: KID then does not depend on which are drawn.
CONFIG = EvalConfig(reference_count=COUNT, kid_subsets=1, kid_subset_size=COUNT)
DATA = DataConfig(max_objects=1, train_size=2 * COUNT, val_size=COUNT)


@dataclass(frozen=True)
class Drawn:
    images: np.ndarray
    captions: tuple[str, ...]
    labels: tuple[int, ...]


def drawn(data: CaptionedImages, count: int) -> Drawn:
    items = [data[i] for i in range(count)]
    return Drawn(
        np.stack([item.image for item in items]),
        tuple(item.caption for item in items),
        tuple(item.label for item in items),
    )


@pytest.fixture(scope="module")
def reference() -> CaptionedImages:
    return build_dataset(DATA, "train")


@pytest.fixture(scope="module")
def real() -> Drawn:
    return drawn(build_dataset(DATA, "val"), COUNT)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def at_best(real: Drawn, reference: CaptionedImages, cache: Path) -> dict[str, float]:
    """Return the scores of real, held-out images."""
    return score(real.images, real.captions, real.labels, reference, CONFIG, cache)


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.array(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius))) for x in images])


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def test_real_images_score_close_to_the_floor(at_best: dict[str, float]) -> None:
    assert at_best["samples"] == at_best["reference_images"] == COUNT
    assert at_best["fd"] == pytest.approx(at_best["fd_floor"], rel=0.15)
    assert at_best["clip_fd"] == pytest.approx(at_best["clip_fd_floor"], rel=0.5)
    assert abs(at_best["kid"]) < 0.01
    assert abs(at_best["kid_floor"]) < 0.01
    assert at_best["clip_score"] == pytest.approx(at_best["clip_score_real"], abs=4)
    assert at_best["class_accuracy"] == pytest.approx(at_best["class_accuracy_real"], abs=0.12)
    assert at_best["class_accuracy"] > 0.8


@pytest.mark.parametrize(("degrade", "amounts"), [(blurred, (1.0, 3.0)), (noisy, (16.0, 64.0))], ids=["blur", "noise"])
def test_every_score_worsens_with_image_quality(
    degrade: object,
    amounts: Sequence[float],
    real: Drawn,
    reference: CaptionedImages,
    cache: Path,
    at_best: dict[str, float],
) -> None:
    assert callable(degrade)
    found = [at_best] + [
        score(degrade(real.images, amount), real.captions, real.labels, reference, CONFIG, cache) for amount in amounts
    ]
    for better, worse in pairwise(found):
        assert worse["fd"] > 1.2 * better["fd"]
        assert worse["clip_fd"] > 1.5 * better["clip_fd"]
        assert worse["kid"] > better["kid"] + 0.01
        assert worse["clip_score"] < better["clip_score"] - 3
        assert worse["class_accuracy"] < better["class_accuracy"] - 0.02
        assert worse["fd_floor"] == better["fd_floor"]


def test_wrong_captions_lower_agreement_but_not_distances(
    real: Drawn, reference: CaptionedImages, cache: Path, at_best: dict[str, float]
) -> None:
    def rotated(values: Sequence) -> Sequence:
        return (*values[7:], *values[:7])

    config = replace(CONFIG, metrics=("clip_fd", "clip_score", "class_accuracy"))
    found = score(real.images, rotated(real.captions), rotated(real.labels), reference, config, cache)
    assert found["clip_score"] < at_best["clip_score"] - 40
    assert found["class_accuracy"] < 0.35
    assert found["clip_score_real"] == at_best["clip_score_real"]
    assert found["clip_fd"] == at_best["clip_fd"]


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Return d^2 from the singular values of the centered sets' product, without a matrix square root."""
    gap = a.mean(0) - b.mean(0)
    a, b = (x - x.mean(0) for x in (a, b))
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    return gap @ gap + (a**2).sum() + (b**2).sum() - 2 * scipy.linalg.svdvals(a @ b.T).sum()


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within = [sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) for x in (a, b)]
    across = sum(kernel(x, y) for x in a for y in b)
    return within[0] / (n * (n - 1)) + within[1] / (m * (m - 1)) - 2 * across / (n * m)


def test_distances_equal_independent_arithmetic(
    real: Drawn, reference: CaptionedImages, at_best: dict[str, float]
) -> None:
    sets = ReferenceSplit(reference, COUNT, COUNT)
    stacks = (real.images, np.stack([reference[int(row)].image for row in sets.reference]))
    network = EfficientNetLite0Features("lite0", ["pooled"])
    with torch.no_grad():
        lite = [network(torch.from_numpy(stack).permute(0, 3, 1, 2))[0].numpy() for stack in stacks]
    assert lite[0].shape == (COUNT, 1280)
    # torch-fidelity adds up roots of all 1280 eigenvalues, 1185 of which are rounding of zero: 7e-7 measured here.
    assert at_best["fd"] == pytest.approx(frechet(*lite), rel=5e-6)
    assert at_best["kid"] == pytest.approx(kernel_distance(*lite), rel=1e-6, abs=1e-9)
    clip = ScoringClip()
    embedded = [clip.image_features(torch.from_numpy(stack)).double().numpy() for stack in stacks]
    assert at_best["clip_fd"] == pytest.approx(frechet(*embedded), rel=1e-5)


def test_precision_and_recall_equal_independent_arithmetic(
    real: Drawn, reference: CaptionedImages, cache: Path
) -> None:
    count = 24
    config = replace(CONFIG, reference_count=count, metrics=("precision", "recall"))
    images = np.concatenate([real.images[:12], blurred(real.images[12:count], 2.0)])
    found = score(images, real.captions[:count], real.labels[:count], reference, config, cache)
    rows = ReferenceSplit(reference, count, count).reference
    network = EfficientNetLite0Features("lite0", ["pooled"])
    stacks = (images, np.stack([reference[int(row)].image for row in rows]))
    with torch.no_grad():
        samples, truth = (network(torch.from_numpy(stack).permute(0, 3, 1, 2))[0].numpy() for stack in stacks)

    def covered(points: np.ndarray, by: np.ndarray) -> float:
        """Return the share of `points` no farther from one of `by` than that one's third neighbor."""
        radii = [sorted(np.linalg.norm(by - x, axis=1))[3] for x in by]
        return float(np.mean([any(np.linalg.norm(p - x) <= r for x, r in zip(by, radii, strict=True)) for p in points]))

    assert found["precision"] == pytest.approx(covered(samples, truth), abs=1e-6)
    assert found["recall"] == pytest.approx(covered(truth, samples), abs=1e-6)
    assert 0 < found["precision"] < found["precision_real"]
    with pytest.raises(DataError, match="need more than 3 images"):
        score(images[:3], real.captions[:3], real.labels[:3], reference, config, cache)


def test_only_the_requested_metrics_are_computed(real: Drawn, reference: CaptionedImages, cache: Path) -> None:
    config = replace(CONFIG, metrics=("clip_score",))
    found = score(real.images, real.captions, real.labels, reference, config, cache)
    assert set(found) == {"clip_score", "clip_score_real", "samples", "reference_images"}


def test_without_known_labels_there_is_no_class_accuracy(real: Drawn, reference: CaptionedImages, cache: Path) -> None:
    config = replace(CONFIG, metrics=("clip_score", "class_accuracy"))
    found = score(real.images, real.captions, [-1] * COUNT, reference, config, cache)
    assert set(found) == {"clip_score", "clip_score_real", "samples", "reference_images"}


def test_fewer_samples_than_features_log_a_warning(
    real: Drawn, reference: CaptionedImages, cache: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    config = replace(CONFIG, metrics=("clip_fd",))
    with caplog.at_level(logging.WARNING):
        found = score(real.images, real.captions, real.labels, reference, config, cache)
    assert f"96 samples for {ScoringClip.embedding_width()} features" in caplog.text
    assert f"{found['clip_fd_floor']:.4g}" in caplog.text
    caplog.clear()
    large = DataConfig(max_objects=1, train_size=320, val_size=160)
    many = drawn(build_dataset(large, "val"), 160)
    with caplog.at_level(logging.WARNING):
        score(many.images, many.captions, many.labels, build_dataset(large, "train"), config, tmp_path)
    assert not caplog.records


def test_too_few_real_images_for_the_floor_log_a_warning(
    real: Drawn, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    small = build_dataset(replace(DATA, train_size=100), "train")
    with caplog.at_level(logging.WARNING):
        found = score(real.images, real.captions, real.labels, small, replace(CONFIG, metrics=("clip_fd",)), tmp_path)
    assert found["reference_images"] == 50
    assert "the reference has 50 and the floor is measured with 50" in caplog.text


def test_the_description_has_counts_and_floors(at_best: dict[str, float]) -> None:
    head, *lines, last = describe(at_best | {"val_loss": 0.25}, CONFIG).splitlines()
    assert head == "96 samples, 96 real images"
    assert [line.split()[0] for line in lines] == ["fd", "kid", "clip_fd", "clip_score", "class_accuracy", "val_loss"]
    assert f"floor {at_best['fd_floor']:.4g}, Fréchet distance on {feature_net_name(CONFIG).split('+')[0]}" in lines[0]
    assert f"real images {at_best['class_accuracy_real']:.4g}" in lines[-2]
    assert last.startswith("Fewer samples than features: fd (1280), clip_fd (128).")
    assert "Fewer" not in describe(at_best | {"samples": 2000.0}, CONFIG)
    assert describe({"val_loss": 0.25}, CONFIG).split()[:2] == ["val_loss", "0.25"]


def test_the_networks_name_has_digests_of_their_weights() -> None:
    lite, clip = feature_net_name(EvalConfig()).split("+")
    assert lite.startswith("efficientnet-lite0-imagenet@")
    assert clip == f"score-clip@{ScoringClip().fingerprint[:8]}"
    assert set(BUNDLED_NETS) == set(EXTRACTORS) - {SCORE_CLIP, "user"}


@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=30).filter(lambda x: max(x) >= 0), seed=st.integers(0, 999)
)
@settings(max_examples=50)
def test_class_accuracy_counts_known_labels_only(labels: list[int], seed: int) -> None:
    images = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    classes = torch.eye(4, 5)
    right = [int(images[i, :4].argmax()) == label for i, label in enumerate(labels) if label >= 0]
    assert class_accuracy(images, labels, classes) == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"metrics": ("fd", "clip_scroe")}, ("clip_scroe", "did you mean 'clip_score'?")),
        ({"metrics": ()}, ("evaluation.metrics", "valid choices")),
        ({"metrics": ("fd", "fd")}, ("repeats",)),
        ({"feature_net": "efficientnet-lite"}, ("did you mean 'efficientnet-lite0'?",)),
        ({"feature_weights": "a.pth"}, ("evaluation.feature_weights", "whose weights come with a package")),
        ({"clip": ""}, ("'evaluation.clip' is empty",)),
        ({"samples": 1}, ("evaluation.samples", "at least 2")),
        ({"guidance": -1.0}, ("evaluation.guidance",)),
        ({"p_std": 0.0}, ("evaluation.p_std", "above 0")),
        ({"kid_subset_size": 1}, ("evaluation.kid_subset_size", "at least 2")),
        ({"noises": 0}, ("evaluation.noises", "at least 1")),
    ],
)
def test_invalid_settings_are_rejected(settings_: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        EvalConfig(**settings_)
    assert all(word in str(caught.value) for word in words)


def test_images_that_do_not_fit_are_rejected(real: Drawn, reference: CaptionedImages, tmp_path: Path) -> None:
    def fails(images: np.ndarray, captions: Sequence[str], labels: Sequence[int], words: str) -> None:
        with pytest.raises(DataError, match=words):
            score(images, captions, labels, reference, CONFIG, tmp_path)

    fails(real.images, real.captions[:-1], real.labels, "96 images, 95 captions and 96 labels")
    fails(real.images[:1], real.captions[:1], real.labels[:1], "at least 2")
    fails(real.images[:, ::2, ::2], real.captions, real.labels, r"\(32, 32, 3\).*\(64, 64, 3\)")
    fails(real.images / 255, real.captions, real.labels, "float64")
    fails(real.images, real.captions, [10] * COUNT, "a label is 10, but the reference has 10 classes")
    with pytest.raises(ConfigError, match="at least 4"):
        score(
            real.images,
            real.captions,
            real.labels,
            build_dataset(replace(DATA, train_size=3), "train"),
            CONFIG,
            tmp_path,
        )
