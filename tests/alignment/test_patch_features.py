"""Test patch features: the cache, its reuse, and those of EfficientNet-Lite0."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from aligned_runs import Colors, Crooked, Huge, Shades, aligned, training

from microdit.alignment.feature_cache import encode_targets
from microdit.alignment.patch_encoders import LITE0_MAPS, Lite0Patches
from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.data.registry import build_dataset
from microdit.encoders.efficientnet_lite0 import build_lite0
from microdit.pipeline.evaluate import evaluate_run
from microdit.pipeline.inputs import build_components
from microdit.pipeline.train_and_evaluate import run


def test_features_are_computed_once(colors: Config, tmp_path: Path):
    config = dataclasses.replace(colors, cache_dir=str(tmp_path))
    before = Colors.calls
    first = build_components(config).train.targets
    calls = Colors.calls
    second = build_components(aligned(config, weight=0.1, block=2)).train.targets
    assert calls > before
    assert Colors.calls == calls
    images = build_dataset(config.data, "train")
    rows = np.array([5, 0, 63, 95])
    expected = Colors(4, "cpu").encode(torch.from_numpy(np.stack([images[int(i)].image for i in rows])))
    for targets in (first, second):
        assert targets.features.shape == (96, 16, 6)
        assert isinstance(targets.features, np.memmap)
        assert targets.batch(rows).dtype == torch.float16
        torch.testing.assert_close(targets.batch(rows).float(), expected, rtol=1e-3, atol=1e-3)
    assert len([path for path in (tmp_path / "patches").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(("seed", "encoder", "side"), [(1, Colors, 4), (0, Shades, 4), (0, Colors, 2)])
def test_other_data_encoders_and_grids_have_other_features(
    colors: Config, tmp_path: Path, seed: int, encoder: type[Colors], side: int
):
    def features(seed: int, encoder: type[Colors], side: int) -> np.ndarray:
        data = dataclasses.replace(colors.data, train_size=8, seed=seed)
        return encode_targets(build_dataset(data, "train"), encoder(side, "cpu"), tmp_path).features

    before = features(0, Colors, 4)
    other = features(seed, encoder, side)
    assert other.shape == (8, side**2, 6)
    assert not np.array_equal(before, other)
    assert np.array_equal(before, features(0, Colors, 4))


def test_invalid_features_are_not_stored(colors: Config, tmp_path: Path):
    images = build_dataset(dataclasses.replace(colors.data, train_size=8), "train")
    with pytest.raises(ConfigError, match=r"'alignment.encoder': Huge returns features that are not finite"):
        encode_targets(images, Huge(4, "cpu"), tmp_path)
    with pytest.raises(ConfigError, match=r"Crooked returns .*\(8, 15, 6\)"):
        encode_targets(images, Crooked(4, "cpu"), tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize(("side", "grid"), [(4, 7), (8, 7), (10, 14), (16, 14), (32, 28), (64, 56)])
def test_lite0_uses_the_map_nearest_to_the_grid(side: int, grid: int):
    encoder = Lite0Patches(side, "cpu")
    assert 224 // LITE0_MAPS[encoder.map][0] == grid
    assert encoder.fingerprint != Lite0Patches(224, "cpu").fingerprint


def test_lite0_features_equal_the_networks_maps():
    """On a grid as fine as the feature map, nothing is resized: values are equal patch by patch."""
    images = torch.randint(0, 256, (3, 224, 224, 3), generator=generator(0, "images"), dtype=torch.uint8)
    maps = build_lite0().forward_intermediates(images.permute(0, 3, 1, 2) / 127.5 - 1, intermediates_only=True)
    for index, (stride, channels) in enumerate(LITE0_MAPS[2:], start=2):
        encoder = Lite0Patches(224 // stride, "cpu")
        assert (encoder.map, encoder.width) == (index, channels) == (index, maps[index].shape[1])
        found = encoder.encode(images).view(3, 224 // stride, 224 // stride, channels)
        torch.testing.assert_close(found.permute(0, 3, 1, 2), maps[index], rtol=1e-3, atol=1e-3)


def test_scoring_a_run_again_computes_no_patch_features(colors: Config, tmp_path: Path):
    config = dataclasses.replace(colors, cache_dir=str(tmp_path / "cache"))
    run(training(config, tmp_path / "run", steps=1))
    config = dataclasses.replace(config, cache_dir=str(tmp_path / "other"), output_dir=str(tmp_path / "run"))
    calls = Colors.calls
    evaluate_run(tmp_path / "run", config)
    assert Colors.calls == calls


def test_a_plugin_that_is_not_listed_is_rejected(colors: Config):
    with pytest.raises(ConfigError, match=r"'alignment\.encoder' is 'nowhere\.Encoder'.*'plugins'"):
        build_components(aligned(colors, encoder="nowhere.Encoder"))
