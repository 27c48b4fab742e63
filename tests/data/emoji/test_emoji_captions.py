"""Test that captions match the attributes for every kind of fact, and the pixels for colors."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from caption_checker import check_caption
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microdit.data.config import DataConfig
from microdit.data.dataset import SPLITS, Sample
from microdit.data.emoji.art import BY_CODE, DRAWINGS, painted, to_hsv
from microdit.data.emoji.scene import PLAIN
from microdit.data.registry import build_dataset

CONFIG = DataConfig(train_size=100_000, val_size=100_000, resolution=16)
NEUTRAL = {"white", "gray", "black"}


def color_name(hue: float, saturation: float, value: float) -> str:
    """Return the plain word for a color, independently of how the drawings are painted."""
    if value < 0.3:
        return "black"
    if saturation < 0.16 or (saturation < 0.3 and 190 < hue < 240):
        return "white" if value > 0.82 and saturation < 0.16 else "gray"
    if hue >= 342 or hue < 5:
        return "red" if saturation >= 0.6 else "pink"
    if hue < 45 and (value < 0.7 or saturation < 0.64):
        return "brown"
    for name, end in (("red", 12), ("orange", 40), ("yellow", 65), ("green", 165), ("blue", 250), ("purple", 295)):
        if hue < end:
            return name
    return "pink"


def color_shares(pixels: np.ndarray) -> dict[str, float]:
    """Return the share of each color word in (N, 3) uint8 pixels."""
    names = [color_name(*hsv) for hsv in zip(*to_hsv(pixels), strict=True)]
    return {name: names.count(name) / len(names) for name in set(names)}


@settings(max_examples=400)
@given(
    st.integers(0, 99_999),
    st.integers(0, 3),
    st.sampled_from(SPLITS),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_every_caption_agrees_with_its_image(
    i: int, seed: int, split: str, most: int, hues: bool, scenery: bool, names: bool
) -> None:
    config = dataclasses.replace(
        CONFIG, seed=seed, max_objects=most, hues=hues, scenery=scenery, sizes=hues, specific_names=names
    )
    item = build_dataset(config, split)[i]
    assert check_caption(item) == [], item.caption


def find(wanted: Callable[[Sample], Any]) -> Sample:
    dataset = build_dataset(CONFIG, "train")
    return next(item for item in (dataset[i] for i in range(20_000)) if wanted(item))


def altered(item: Sample, change: Callable[[dict[str, Any]], None]) -> Sample:
    attributes = copy.deepcopy(dict(item.attributes))
    change(attributes)
    return dataclasses.replace(item, attributes=attributes)


def test_the_checker_finds_a_wrong_color() -> None:
    item = find(lambda item: re.search(r"\bred (car|plane|truck)", item.caption))
    wrong = altered(item, lambda a: [thing.update(color="green") for thing in a["objects"]])
    assert any("says red" in fault for fault in check_caption(wrong))


def test_the_checker_finds_a_wrong_count() -> None:
    item = find(lambda item: "two " in item.caption and item.attributes["relation"] is None)
    assert any("says 2" in fault for fault in check_caption(altered(item, lambda a: a["objects"].pop())))


def test_the_checker_finds_a_wrong_background() -> None:
    item = find(lambda item: "green background" in item.caption)
    assert check_caption(altered(item, lambda a: a.update(background="red")))


def test_the_checker_finds_swapped_places() -> None:
    def swap(attributes: dict[str, Any]) -> None:
        first, second = attributes["objects"]
        first["box"], second["box"] = second["box"], first["box"]

    for relation in ("left of", "right of", "above", "below"):
        item = find(lambda item, r=relation: f" {r} " in item.caption and len(item.attributes["objects"]) == 2)
        assert any(relation in fault for fault in check_caption(altered(item, swap))), relation


def test_the_checker_finds_a_wrong_class_name_or_label() -> None:
    item = find(lambda item: "taxi" in item.caption and len(item.attributes["objects"]) == 1)
    assert check_caption(altered(item, lambda a: a["objects"][0].update(drawing="1f697")))
    assert any("label" in fault for fault in check_caption(dataclasses.replace(item, label=0)))


def test_the_checker_finds_a_wrong_size() -> None:
    item = find(lambda item: re.search(r"\b(small|little)\b", item.caption) and len(item.attributes["objects"]) == 1)
    assert check_caption(altered(item, lambda a: a["objects"][0].update(size="big")))


@pytest.mark.parametrize(
    ("wanted", "old", "new"),
    [
        (lambda item: item.caption.startswith("a deer"), "a deer", "an deer"),
        (lambda item: item.caption.startswith("an airplane"), "an airplane", "a airplane"),
        (lambda item: "two cats" in item.caption, "two cats", "two cat"),
        (lambda item: "three deer" in item.caption, "three deer", "three deers"),
        (lambda item: item.caption.startswith("there is a"), "there is", "there are"),
        (lambda item: item.caption.startswith("a cat on"), "a cat", "a purring cat"),
    ],
)
def test_the_checker_finds_bad_grammar_and_unknown_words(wanted: Callable[[Sample], bool], old: str, new: str) -> None:
    item = find(wanted)
    assert check_caption(item) == []
    assert check_caption(dataclasses.replace(item, caption=item.caption.replace(old, new, 1)))


@pytest.mark.parametrize("code", [drawing.code for drawings in DRAWINGS.values() for drawing in drawings])
def test_a_drawing_has_the_color_of_its_word(code: str) -> None:
    drawing = BY_CODE[code]
    for color in {drawing.color, *drawing.colors} - {None}:
        art = painted(code, color)
        shares = color_shares(art[art[..., 3] > 200][:, :3])
        rivals = {name: share for name, share in shares.items() if color in NEUTRAL or name not in NEUTRAL}
        assert max(rivals, key=lambda name: rivals[name]) == color, shares
        assert rivals[color] > 0.25, shares


@settings(max_examples=60)
@example(3492)  # two green trucks on green grass
@given(st.integers(0, 99_999))
def test_color_words_are_true_of_the_final_pixels(i: int) -> None:
    item = build_dataset(dataclasses.replace(CONFIG, resolution=96), "train")[i]
    # Backgrounds vary over y alone and objects keep off the frame's edge, so the first column shows the background.
    background = item.image[:, :1].astype(int)
    drawn = np.abs(item.image.astype(int) - background).max(-1) > 24
    if item.attributes["background"] in PLAIN:
        shares = color_shares(background[:, 0].astype(np.uint8))
        expected = item.attributes["background"]
        assert max(shares, key=lambda name: shares[name]) == expected, shares
    for thing in item.attributes["objects"]:
        if thing["color"] is None:
            continue
        left, top, right, bottom = (round(edge * 96) for edge in thing["box"])
        inside = np.zeros_like(drawn)
        inside[top:bottom, left:right] = True
        behind = color_shares(background[top:bottom, 0].astype(np.uint8))
        if (
            max(behind, key=lambda name: behind[name]) != thing["color"]
        ):  # else its own color doesn't stand out as drawn
            inside &= drawn
        assert color_shares(item.image[inside])[thing["color"]] > 0.2, (item.caption, thing)
