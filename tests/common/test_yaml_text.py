"""Test reading YAML of finished runs: one error type, and limits for hostile documents."""

import time

import pytest

from microdit.common.errors import DataError, MicroditError
from microdit.common.files.yaml_text import MAX_STORED_NODES, load_stored_mapping


def test_plain_values_are_read() -> None:
    assert load_stored_mapping("a: [1, {b: null}]", "study.yaml") == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: [1", "not valid YAML"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ("&a [*a]", "contains it"),
        ("a: &x [" + "1," * 50_000 + "]\nb: [" + "*x," * 50 + "]", f"more than {MAX_STORED_NODES:,} values"),
        ("!!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_broken_document_is_one_error_with_its_source(text: str, word: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match=r"study\.yaml: not valid YAML") as error:
        load_stored_mapping(text, "study.yaml")
    assert word in str(error.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["[1]", "", "1: a", "{2: b, c: d}"])
def test_a_mapping_with_text_keys_is_needed(text: str) -> None:
    class OwnError(MicroditError):
        pass

    with pytest.raises(OwnError, match="must hold a mapping of keys"):
        load_stored_mapping(text, "study.yaml", OwnError)
