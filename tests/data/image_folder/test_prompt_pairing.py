"""Test that images are paired with their own prompts, in any listing order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.common.errors import DataError
from microdit.data.image_folder.prompt_pairing import numbered_order, read_prompted


def pairs(root: Path, files: list[str], **listing: Any) -> dict[str, str]:
    (root / "prompts.json").write_text(json.dumps(listing))
    return {entry.file: entry.prompt for entry in read_prompted(root / "prompts.json", files)}


def fails(root: Path, files: list[str], words: str, **listing: Any) -> None:
    with pytest.raises(DataError, match=words):
        pairs(root, files, **listing)


@given(
    count=st.integers(1, 130),
    first=st.integers(0, 12),
    step=st.integers(1, 3),
    width=st.integers(0, 5),
    before=st.sampled_from(["", "img_", "seed7-", "a b "]),
)
def test_numbers_count_as_numbers(count: int, first: int, step: int, width: int, before: str) -> None:
    files = [f"{before}{first + step * k:0{width}}.png" for k in range(count)]
    shuffled = random.Random(0).sample(files, count)
    assert numbered_order(shuffled) == files
    assert numbered_order(sorted(files)) == files


@pytest.mark.parametrize(
    "files",
    [
        ["1.png", "01.png"],
        ["1.png", "b2.png"],
        ["cat.png", "dog.png"],
        ["0.png", "1.jpg"],
        ["0_1.png", "1_0.png"],
        ["0.png", "1.png", "3.png"],
        ["1.png", "10.png", "2.png"],
    ],
)
def test_an_ambiguous_order_is_rejected(files: list[str], tmp_path: Path) -> None:
    assert numbered_order(files) is None
    fails(tmp_path, files, "is ambiguous", prompts=["x"] * len(files))


def test_24_images_get_their_prompts(tmp_path: Path) -> None:
    for names in ([f"{k}.png" for k in range(24)], [f"{k:05}.png" for k in range(24)]):
        expected = dict(zip(names, map(str, range(24)), strict=True))
        assert pairs(tmp_path, sorted(names), prompts=list(map(str, range(24)))) == expected


def test_names_pair_in_any_order(tmp_path: Path) -> None:
    files = ["10.png", "9.png", "cat.png"]
    wanted = {"cat.png": "a cat", "9.png": "nine", "10.png": "ten"}
    assert pairs(tmp_path, files, prompts=wanted) == wanted
    entries = [{"file": file, "prompt": prompt, "label": 3} for file, prompt in wanted.items()]
    assert pairs(tmp_path, files, prompts=entries) == wanted
    found = read_prompted(tmp_path / "prompts.json", files)
    assert [entry.label for entry in found] == [3, 3, 3]
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": wanted, "labels": {"9.png": "dog"}}))
    assert [entry.label for entry in read_prompted(tmp_path / "prompts.json", files)] == [None, "dog", None]


def test_unpaired_entries_are_counted_and_named(tmp_path: Path) -> None:
    files = ["0.png", "1.png"]
    fails(tmp_path, files, r"1 of 2 images have no prompt: 1\.png", prompts={"0.png": "x"})
    fails(tmp_path, files, r"1 of 3 entries match no image .*: 2\.png", prompts=dict.fromkeys([*files, "2.png"], "x"))
    fails(tmp_path, files, "3 prompts and 3 labels for 2 images", prompts=["x"] * 3)
    fails(tmp_path, files, "2 prompts and 1 labels for 2 images", prompts=["x"] * 2, labels=[0])
    fails(tmp_path, files, r"'labels' has 2\.png", prompts=dict.fromkeys(files, "x"), labels={"2.png": 1})
    fails(tmp_path, files, r"repeats '0\.png'", prompts=[{"file": "0.png", "prompt": "x"}] * 2)
    fails(tmp_path, files, "entry 1 .* needs the keys", prompts=[{"file": "0.png", "prompt": "x"}, "y"])
    fails(tmp_path, files, r"prompt of '1\.png' must be text", prompts=["x", " "])
    fails(tmp_path, files, "strips of several images", prompts=["x", "y"], tile=64)
    fails(tmp_path, files, "'labels' must be a list", prompts=["x", "y"], labels={"0.png": 1})
