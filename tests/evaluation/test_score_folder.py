"""Test scoring a folder of images: the same numbers as for arrays, and one clear error per fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microdit.common.errors import DataError
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages, Sample
from microdit.data.registry import build_dataset
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.image_folder import evaluate_folder
from microdit.evaluation.score import score

COUNT = 12
CONFIG = EvalConfig(reference_count=16, metrics=("clip_fd", "clip_score", "class_accuracy"))
DATA = DataConfig(max_objects=1, train_size=40, val_size=COUNT)


@pytest.fixture(scope="module")
def reference() -> CaptionedImages:
    return build_dataset(DATA, "train")


@pytest.fixture(scope="module")
def items() -> list[Sample]:
    data = build_dataset(DATA, "val")
    return [data[i] for i in range(COUNT)]


def write_images(root: Path, items: list[Sample]) -> list[str]:
    names = [f"{i:03}.png" for i in range(len(items))]
    for name, item in zip(names, items, strict=True):
        Image.fromarray(item.image).save(root / name)
    return names


def write_prompts(root: Path, items: list[Sample], **changes: object) -> None:
    listing = {"prompts": [item.caption for item in items], "labels": [item.label for item in items]} | changes
    (root / "prompts.json").write_text(json.dumps(listing), encoding="utf-8")


def test_scores_of_a_folder_equal_those_of_arrays(
    tmp_path: Path, reference: CaptionedImages, items: list[Sample]
) -> None:
    expected = score(
        np.stack([item.image for item in items]),
        [item.caption for item in items],
        [item.label for item in items],
        reference,
        CONFIG,
        tmp_path / "cache",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    write_images(one, items)
    write_prompts(one, items)
    assert evaluate_folder(one, reference, CONFIG, tmp_path / "cache") == expected
    two.mkdir()
    rows = [
        {"file_name": name, "text": item.caption, "label": reference.classes[item.label]}
        for name, item in zip(write_images(two, items), items, strict=True)
    ]
    (two / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert evaluate_folder(two, reference, CONFIG, tmp_path / "cache") == expected


def assert_rejected(root: Path, reference: CaptionedImages, words: str) -> None:
    with pytest.raises(DataError, match=words):
        evaluate_folder(root, reference, CONFIG, root / "cache")


def test_errors_name_the_file(tmp_path: Path, reference: CaptionedImages, items: list[Sample]) -> None:
    assert_rejected(tmp_path / "absent", reference, "absent is not a folder")
    write_images(tmp_path, items)
    assert_rejected(tmp_path, reference, "12 of 12 images have no caption")
    (tmp_path / "prompts.json").write_text("{", encoding="utf-8")
    assert_rejected(tmp_path, reference, "prompts.json: not valid JSON")
    write_prompts(tmp_path, items, prompts=3)
    assert_rejected(tmp_path, reference, "needs the key 'prompts'")
    write_prompts(tmp_path, items[:-1])
    assert_rejected(tmp_path, reference, "11 prompts and 11 labels for 12 images")
    write_prompts(tmp_path, items, labels=["truk"] * COUNT)
    assert_rejected(tmp_path, reference, "'truk' is not a class of the reference; did you mean 'truck'")
    write_prompts(tmp_path, items, labels=[2.5] * COUNT)
    assert_rejected(tmp_path, reference, "neither an index nor a name")
    write_prompts(tmp_path, items)
    (tmp_path / "003.png").write_bytes(b"not an image")
    assert_rejected(tmp_path, reference, "003.png can't be read")
