"""Test that all readers of captions, tables and prompts share one rule for encodings and line ends."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from microdit.common.errors import ConfigError, DataError, MicroditError
from microdit.common.files.text import collapse_blanks, csv_rows, json_rows, parse_json, read_text, split_lines
from microdit.data.cifar_captions.class_words import load_words
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.evaluation.prompt_files import read_prompts

NO_LINE_ENDS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # str.splitlines ends a line at each of them
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def captions(root: Path) -> list[str]:
    data = DataConfig(name="folder", path=str(root), resolution=16)
    found = [build_dataset(data, split) for split in ("train", "val")]
    return sorted(one[i].caption for one in found for i in range(len(one)))


def folder(root: Path, files: list[str]) -> Path:
    root.mkdir(exist_ok=True)
    for file in files:
        Image.new("RGB", (16, 16)).save(root / file)
    return root


# ---- laws ----


@given(st.lists(TEXT.map(lambda text: re.sub(r"[\r\n]", "", text)), min_size=1), st.sampled_from(["\n", "\r\n", "\r"]))
def test_lines_end_only_at_lf_crlf_and_cr(lines: list[str], end: str) -> None:
    assert split_lines(end.join(lines) + end) == lines


@given(rows=st.lists(st.lists(TEXT, min_size=2, max_size=3), min_size=1), bom=st.booleans())
def test_csv_round_trips(rows: list[list[str]], bom: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + stream.getvalue().encode())
    found = list(csv_rows(path))
    assert [fields for _, fields in found] == rows
    before = [sum(len(re.findall(r"\r\n|\r|\n", field)) for field in row) + 1 for row in rows]
    assert [line for line, _ in found] == [1 + sum(before[:i]) for i in range(len(rows))]


@given(st.lists(st.dictionaries(TEXT, TEXT, min_size=1), min_size=1), st.booleans())
def test_json_round_trips(rows: list[dict[str, str]], ascii_only: bool) -> None:
    for row in rows:
        assert parse_json(json.dumps(row, ensure_ascii=ascii_only), "a") == row


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_rejected_by_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(data)
    try:
        expected = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        expected = None
    if expected is None or "\0" in expected or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        with pytest.raises(DataError, match=r"a\.txt, line \d+: "):
            read_text(path)
    else:
        assert read_text(path) == expected


# ---- every reader ----


def test_captions_may_hold_any_white_space(tmp_path: Path) -> None:
    """Each of these characters is one blank in a caption, and no line end in a table."""
    expected = collapse_blanks("a " + " b ".join(NO_LINE_ENDS) + " c")
    caption = "a" + "b".join(NO_LINE_ENDS) + "c"
    wanted = ["a b b b b b b b c", "two"]
    assert collapse_blanks(caption) == wanted[0] == re.sub(r"\s+", " ", expected)
    table = folder(tmp_path / "csv", ["0.png", "1.png"])
    for bom, end in ((b"", "\n"), (b"\xef\xbb\xbf", "\r\n"), (b"", "\r")):
        text = end.join(["file_name,text", f"0.png,{caption}", "1.png,two", ""])
        (table / "metadata.csv").write_bytes(bom + text.encode())
        assert captions(table) == wanted
    lines = folder(tmp_path / "jsonl", ["0.png", "1.png"])
    rows = [{"file_name": "0.png", "text": caption}, {"file_name": "1.png", "text": "two"}]
    for end in ("\n", "\r\n", "\r"):
        text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
        (lines / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert captions(lines) == wanted
    beside = folder(tmp_path / "txt", ["0.png", "1.png"])
    (beside / "0.txt").write_bytes(b"\xef\xbb\xbf" + caption.encode())
    (beside / "1.txt").write_bytes(b"two\r\n")
    assert captions(beside) == wanted


def test_prompts_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028a\rtwo\x85b\r\nthree\x0bc\n".encode())
    assert read_prompts(path, 3) == ("one\u2028a", "two\x85b", "three\x0bc")


# Name of a file -> content before line 4, its reader, and the error of the reader.
READERS: dict[str, tuple[bytes, Callable[[Path], object], type[MicroditError]]] = {
    "metadata.csv": (b'file_name,text\n0.png,"two\nlines"\n', captions, DataError),
    "metadata.jsonl": (b'{"file_name": "0.png", "text": "x"}\n\n\n', captions, DataError),
    "0.txt": (b"one\r\ntwo\rthree\n", captions, DataError),
    "prompts.txt": (b"one\r\ntwo\rthree\n", lambda root: read_prompts(root / "prompts.txt", 4), ConfigError),
    "words.yaml": (b"cat:\r\n  words:\r  - cat\n  - ", lambda root: load_words(root / "words.yaml"), DataError),
}


def error_of(file: str, line: bytes, root: Path) -> str:
    """Return the message of a file's reader if `line` is the file's fourth."""
    before, read, error = READERS[file]
    folder(root, ["0.png"])
    (root / file).write_bytes(before + line)
    with pytest.raises(error, match=r"'evaluation\.prompts'" if error is ConfigError else None) as caught:
        read(root)
    return str(caught.value)


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"gr\xf6\xdfe", "not UTF-8"),
        (b"half \xed\xa0\x80 a character", "not UTF-8"),
        (b"a\0b", "NUL"),
        ("größe\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_bytes_that_are_not_text_are_reported_with_file_and_line(
    file: str, line: bytes, words: str, tmp_path: Path
) -> None:
    message = error_of(file, line, tmp_path)
    assert re.search(rf"\.(csv|jsonl|txt|yaml), line 4: .*{words}", message), message


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größe".encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1: not UTF-8 text but UTF-16"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "escape", [r"\ud800", r"\udfff", r"\ud800\ud800\udc00", r"\udc00\ud800", r"\ud800x\udc00", r"\u0000"]
)
def test_escapes_of_no_character_are_named_by_line(escape: str, tmp_path: Path) -> None:
    row = f'{{"file_name": "0.png", "text": "a {escape}"}}\n'.encode()
    assert "metadata.jsonl, line 4: not valid JSON (an escape for" in error_of("metadata.jsonl", row, tmp_path / "a")
    coco = tmp_path / "c.json"
    coco.write_text(
        f'{{"annotations": [\n{{"image_id": 1, "caption": "x"}},\n{{"image_id": 2, "caption": "{escape}"}}]}}'
    )
    with pytest.raises(ConfigError, match=r"c\.json: not valid JSON \(line 3: an escape for"):
        read_prompts(coco, 1)


def test_escaped_pairs_and_backslashes_are_characters(tmp_path: Path) -> None:
    assert parse_json(r'["\ud83d\ude00", "\\ud800", "\\\\u0000"]', "a") == ["😀", r"\ud800", r"\\u0000"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": 1e999}', "beyond the largest"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_ambiguous_json_is_rejected(text: str, words: str) -> None:
    with pytest.raises(DataError, match=f"t.jsonl, line 7: not valid JSON .*{words}"):
        parse_json(text, "t.jsonl", 7)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('0.png,"a\r\nb",c\n1.png,d\n', r"line 2: not as many fields"),
        ('0.png,"a\n\nb"\n1.png,d,e\n', r"line 5: not as many fields"),
        ('0.png,"a\rb"\r1.png,"d\r', r"line 4: unexpected end"),
        ('0.png,"a\u2028b"\n1.png,"d"e\n', r"line 3: "),
        ('\n\n0.png,"a\nb"\n1.png, \n', r"1\.png \(line 6\)"),
    ],
)
def test_lines_of_a_table_are_counted_with_quoted_ones(rows: str, words: str, tmp_path: Path) -> None:
    folder(tmp_path, ["0.png", "1.png"])
    (tmp_path / "metadata.csv").write_bytes(("file_name,text\n" + rows).encode())
    with pytest.raises(DataError, match=words):
        captions(tmp_path)


def test_a_column_that_occurs_twice_is_rejected(tmp_path: Path) -> None:
    folder(tmp_path, ["0.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text,text\n0.png,a,b\n")
    with pytest.raises(DataError, match="header: the column 'text' occurs twice"):
        captions(tmp_path)


def test_blank_lines_of_json_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\r\n{"a": 1}\r\r{"a": 2}')
    assert list(json_rows(path)) == [(2, {"a": 1}), (4, {"a": 2})]
