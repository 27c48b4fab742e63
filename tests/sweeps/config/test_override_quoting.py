"""Test that paths survive Hydra's override grammar and sqlite URIs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine

from microdit.common.stores.sqlite_uri import sqlite_path, sqlite_uri
from sweeps.config.override_quoting import as_value, quoted, quoted_path

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\\'\"$ab{} \n%#")


def parsed(word: str) -> object:
    [override] = OverridesParser.create().parse_overrides([word])
    return override.value()


@given(text=TEXT)
def test_hydra_reads_a_quoted_value_back(text: str) -> None:
    assert parsed(f"a.b={quoted(text)}") == text
    assert parsed(f"a.b={as_value([text, 1])}") == [text, 1]


@pytest.mark.parametrize("path", ["/a b", "/it's", '/"q"', "/x#y?z%20", "/a\\b", "/(x)[y]{z}", "/a,b=c"])
def test_a_path_on_the_command_line_is_taken_as_it_is(path: str) -> None:
    assert parsed(quoted_path(f"cache_dir={path}")) == path
    assert parsed(quoted_path(quoted_path(f"cache_dir={path}"))) == path


def test_other_words_keep_hydras_grammar() -> None:
    assert quoted_path("model.widths=[1,2]") == "model.widths=[1,2]"


@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40))
def test_a_uri_names_exactly_the_files_path(name: str) -> None:
    path = Path(f"/{name}").parent / name
    assert sqlite_path(sqlite_uri(path)) == Path(os.path.abspath(path))


@pytest.mark.parametrize("name", ["a?b", "50%", "%41", "it's", '"q"', "#1", "a b", "é", "a\\b", "{x}", "a\nb", "a&b=c"])
def test_sqlite_opens_the_file_that_was_meant(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with create_engine(sqlite_uri(folder / "x.db")).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a)")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (folder / "x.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite+pysqlite:////a%3Fb/c.db?timeout=60", "/a?b/c.db"),
        ("sqlite:///file:/a/b.db?mode=ro&uri=true", "/a/b.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://u@h/d", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: str | None) -> None:
    assert sqlite_path(uri) == (None if path is None else Path(path))
