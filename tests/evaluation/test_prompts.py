"""Test prompts from a file: COCO's captions or lines of text, and one clear error per fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microdit.common.errors import ConfigError
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.prompt_files import read_prompts
from microdit.evaluation.report import check_scoring, feature_net_name

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "a.jpg"}, {"id": 4, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "A cat on a mat. "},
        {"image_id": 4, "id": 2, "caption": "Two dogs."},
        {"image_id": 9, "id": 3, "caption": "A mat under a cat."},
    ],
}


def test_the_first_caption_of_each_image_is_used(tmp_path: Path) -> None:
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(COCO), encoding="utf-8")
    assert read_prompts(path, 2) == ("A cat on a mat.", "Two dogs.")
    assert read_prompts(path, 1) == ("A cat on a mat.",)


def test_a_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("un café\r\ntwo dogs\n\n", encoding="utf-8")
    assert read_prompts(path, 2) == ("un café", "two dogs")


def test_scores_are_comparable_only_for_equal_prompts(tmp_path: Path) -> None:
    path, other = tmp_path / "prompts.txt", tmp_path / "captions.json"
    path.write_text("A cat on a mat.\nTwo dogs.\nnot used", encoding="utf-8")
    other.write_text(json.dumps(COCO), encoding="utf-8")
    plain = feature_net_name(EvalConfig())
    named = feature_net_name(EvalConfig(prompts=str(path), samples=2))
    assert named.startswith(f"{plain}+prompts@")
    assert named == feature_net_name(EvalConfig(prompts=str(other), samples=2))
    path.write_text("A cat.\nTwo dogs.", encoding="utf-8")
    assert named != feature_net_name(EvalConfig(prompts=str(path), samples=2))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "a cat", "'evaluation.samples' is 2, but 'evaluation.prompts' .*p.txt.* has 1 prompts"),
        ("p.txt", "a cat\n\na dog", "p.txt: line 2 is empty"),
        ("p.txt", " \n", "p.txt has no prompts"),
        ("p.json", "{", "p.json: not valid JSON"),
        ("p.json", '["a cat"]', "p.json: needs the key 'annotations'"),
        (
            "p.json",
            '{"annotations": [{"image_id": 1}]}',
            "entry 0 of 'annotations' needs an 'image_id' and a 'caption'",
        ),
    ],
)
def test_errors_are_found_before_any_computation(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        check_scoring(EvalConfig(prompts=str(tmp_path / name), samples=2))


def test_errors_list_the_accepted_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'evaluation.prompts': .*no.json: no such file; .*captions_val2014.json"):
        check_scoring(EvalConfig(prompts=str(tmp_path / "no.json")))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.txt, line 1: not UTF-8"):
        check_scoring(EvalConfig(prompts=str(tmp_path / "latin.txt")))
