"""Test the classes that captions name: words, plurals, synonyms, and phrases that mean something else."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from coyo_rows import CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st

from microdit.common.errors import DataError
from microdit.data.cifar_captions.class_words import load_words

WORDS = load_words()
NAMING = sorted(phrase for phrase, named in WORDS.meaning.items() if named)
SILENT = sorted(phrase for phrase, named in WORDS.meaning.items() if not named)
ENDS = st.sampled_from(["", " ", ", ", ". ", "(", ")", '"', "!", "/", "\n", " - ", "…", "。", "’ "])


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("A cat on a sofa", "cat"),
        ("CATS AND DOGS", "cat dog"),
        ("Two puppies play with kittens", "dog cat"),
        ("Dogs' day out: the cat’s turn", "dog cat"),
        ("ponies, foals and a fire-truck", "horse truck"),
        ("An aircraft carrier and its planes", "ship airplane"),
        ("Best location for educational catalogs", ""),
        ("Carpet, scarf, planet, shipping, horseshoe, birthday, truckee", ""),
        ("hot dog and corn dogs", ""),
        ("a dog eats a hot-dog", "dog"),
        ("Hello Kitty birdhouse and bird house", ""),
        ("bird’s-eye view, birds eye view, bird's eye view", ""),
        ("cat litter box for your cat", "cat"),
        ("Red car seat in a red car", "automobile"),
        ("ready to ship: dog tags", ""),
        ("a ship in the harbour", "ship"),
        ("paper airplane", ""),
        ("größer als ein CAT", "cat"),
        ("catálogo scat écat", ""),
        ("snake_cat_case", ""),
        ("", ""),
    ],
)
def test_captions(caption: str, classes: str) -> None:
    assert " ".join(WORDS.find(caption)) == classes


def test_every_class_is_found_by_its_own_name_and_plural() -> None:
    for name in CLASSES:
        assert WORDS.find(f"a photo of a {name}") == (name,)
        assert WORDS.find(f"{name}s" if name != "deer" else "deer") == (name,)
    assert WORDS.classes == CLASSES


@settings(max_examples=60)
@given(st.sampled_from(NAMING), ENDS, ENDS, st.randoms())
def test_a_phrase_is_found_between_any_marks_in_any_case(phrase: str, before: str, after: str, draws) -> None:
    written = "".join(draws.choice((c.lower(), c.upper())) for c in phrase).replace(" ", draws.choice((" ", "-", "  ")))
    assert WORDS.find(before + written + after) == (WORDS.meaning[phrase],)


@settings(max_examples=60)
@given(st.sampled_from(SILENT), ENDS, ENDS)
def test_a_phrase_that_means_something_else_is_never_found(phrase: str, before: str, after: str) -> None:
    assert WORDS.find(before + phrase.upper() + after) == ()


@settings(max_examples=60)
@given(st.sampled_from([p for p in NAMING if " " not in p]), st.sampled_from("aqzéß7_Ж"), st.booleans())
def test_a_word_within_another_is_not_found(word: str, letter: str, before: bool) -> None:
    longer = letter + word if before else word + letter
    assert WORDS.find(longer) == (() if longer not in WORDS.meaning else (WORDS.meaning[longer],))


PIECES = st.one_of(
    st.sampled_from(NAMING + SILENT), st.text(max_size=3), st.sampled_from([" ", "-", "'", "’", "\u212a", "ı", "İ"])
)


@settings(max_examples=60)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_preselection_has_no_false_negatives(caption: str) -> None:
    if WORDS.find(caption):
        assert WORDS.mentions(pa.array([caption]))[0].as_py()


@settings(max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(NAMING + SILENT), st.sampled_from(["a", "the", "with", "ü"])), max_size=7))
def test_finding_equals_reading_from_left_to_right(parts: list[str]) -> None:
    """Find classes independently: at each word, the longest known phrase counts and its words are consumed."""
    tokens = " ".join(parts).split(" ")
    longest = max(phrase.count(" ") + 1 for phrase in WORDS.meaning)
    expected: list[str] = []
    place = 0
    while place < len(tokens):
        spans = [n for n in range(longest, 0, -1) if " ".join(tokens[place : place + n]) in WORDS.meaning]
        if spans:
            named = WORDS.meaning[" ".join(tokens[place : place + spans[0]])]
            expected += [named] if named and named not in expected else []
        place += spans[0] if spans else 1
    assert WORDS.find(" ".join(parts)) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: {word: [cat]}", "class 'cat': 'words' is missing or empty"),
        ("cat: {words: [cat], nott: [cat scan]}", "unknown key 'nott'; did you mean 'not'?"),
        ("cat: {words: [cat]}\ndog: {words: [Cat]}", "'cat' stands for 'dog' and also for 'cat'"),
        ("cat: {words: [cat], not: cats eye}", "'not' must be a list"),
        ("cat: {words: [7]}", "7 under 'words' is no text"),
        ("[cat]", "must map each class"),
        ("cat: [", "not valid YAML"),
    ],
)
def test_faults_of_a_word_list_are_reported(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=f"mine.yaml.*{re.escape(message)}"):
        load_words(path)
