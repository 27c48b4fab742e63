"""Test `microdit data cifar-captions --select-only`: chosen and dropped rows, independent of their order."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coyo_rows import CLASSES, row, write
from hypothesis import given, settings
from hypothesis import strategies as st

from microdit.cli.main import main


def chosen(coyo: Path | str, out: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["data", "cifar-captions", "--coyo", str(coyo), "--out", str(out), "--select-only", *words]) == 0
    return pq.read_table(out / "selection.parquet").to_pylist()


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["data", "cifar-captions", "--select-only", *words]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert lines[-1].startswith("microdit: ")
    return lines[-1]


def card(out: Path) -> dict[str, Any]:
    return json.loads((out / "card.json").read_text())


def many(per_class: int) -> list[dict[str, Any]]:
    return [
        row(k, f"a photo of one {CLASSES[k % 10]}, number {k}", image_phash=f"{k:016x}") for k in range(10 * per_class)
    ]


def test_each_filter_drops_and_counts_its_own_rows(tmp_path: Path) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("no url or caption", {"text": None}),
        ("no url or caption", {"url": "  "}),
        ("no class word", {"text": "a catalog of chairs"}),
        ("caption length", {"text": "one cat"}),
        ("caption length", {"text": "cat " * 65}),
        ("min width", {"width": 255}),
        ("min height", {"height": 255}),
        ("min height", {"height": None}),
        ("aspect ratio", {"width": 1000, "height": 499}),
        ("clip", {"clip_similarity_vitb32": 0.2499}),
        ("clip", {"clip_similarity_vitb32": float("nan")}),
        ("watermark", {"watermark_score": 0.51}),
        ("aesthetic", {"aesthetic_score_laion_v2": 4.49}),
        ("nsfw_score_opennsfw2", {"nsfw_score_opennsfw2": 0.6}),
        ("nsfw_score_gantman", {"nsfw_score_gantman": None}),
        ("class word only within another phrase", {"text": "one hot dog please"}),
    ]
    edge = {"width": 512, "height": 256, "clip_similarity_vitb32": 0.25, "watermark_score": 0.5}
    good = [row(100, "a cat  and\na dog", **edge), row(101, "the red truck")]
    rows = [row(k, "a cat sits here") | changes for k, (_, changes) in enumerate(bad)]
    found = chosen(write(tmp_path / "coyo", rows + good), tmp_path / "out")
    assert {r["caption"] for r in found} == {"a cat and a dog", "the red truck"}
    written = card(tmp_path / "out")
    expected: dict[str, int] = {}
    for name, _ in bad:
        expected[name] = expected.get(name, 0) + 1
    assert {name: count for name, count in written["dropped"].items() if count} == expected
    assert list(expected) == [name for name in written["dropped"] if name in expected]  # in the order of application
    assert written["rows_read"] == len(rows) + 2
    text = (tmp_path / "out" / "card.md").read_text()
    assert "| caption length | 2 |" in text
    assert "| cat | " in text


def test_filters_can_be_changed_and_turned_off(tmp_path: Path) -> None:
    rows = [row(0, "a cat", width=100), row(1, "a small dog here", watermark_score=None), row(2, "one big ship here")]
    coyo = write(tmp_path / "coyo", rows)
    assert len(chosen(coyo, tmp_path / "default")) == 1
    words = ["--min-words", "off", "--min-width", "100", "--max-aspect", "off", "--max-watermark", "off"]
    assert len(chosen(coyo, tmp_path / "loose", *words)) == 3
    assert "watermark" not in card(tmp_path / "loose")["dropped"]


def test_a_caption_of_several_classes_is_labeled_by_the_first(tmp_path: Path) -> None:
    coyo = write(tmp_path / "coyo", [row(0, "the dog and a cat"), row(1, "just one cat"), row(2, "cat, dog, cats")])
    found = {r["id"] % 10: r for r in chosen(coyo, tmp_path / "out")}
    assert [found[k]["label"] for k in range(3)] == ["dog", "cat", "cat"]
    assert [found[k]["classes"] for k in range(3)] == [["dog", "cat"], ["cat"], ["cat", "dog"]]
    assert card(tmp_path / "out")["named"]["cat"] == 3
    assert [r["id"] % 10 for r in chosen(coyo, tmp_path / "single", "--several", "drop")] == [1]
    assert card(tmp_path / "single")["dropped"]["several classes"] == 2


def test_one_of_several_duplicates_is_kept(tmp_path: Path) -> None:
    rows = [
        row(0, "a cat is here", url="http://a.invalid/1"),
        row(1, "a cat is there", url="http://a.invalid/1"),
        row(2, "a dog is here", image_phash="ABCDEF0123456789"),
        row(3, "a dog is there", image_phash="abcdef0123456789"),
        row(4, "a frog is here", image_phash=None),
        row(5, "a frog is there", image_phash=None),
    ]
    found = chosen(write(tmp_path / "coyo", rows), tmp_path / "out")
    assert sorted(r["label"] for r in found) == ["cat", "dog", "frog", "frog"]
    assert card(tmp_path / "out")["dropped"]["duplicate url"] == 1
    assert card(tmp_path / "out")["dropped"]["duplicate image_phash"] == 1


def test_caps_balance_and_seed(tmp_path: Path) -> None:
    rows = [r for r in many(20) if "truck" not in r["text"] or r["id"] % 100 < 60]
    coyo = write(tmp_path / "coyo", rows)
    capped = chosen(coyo, tmp_path / "cap", "--per-class", "12")
    assert [sum(r["label"] == name for r in capped) for name in CLASSES] == [12] * 10
    balanced = chosen(coyo, tmp_path / "even", "--balance")
    assert {sum(r["label"] == name for r in balanced) for name in CLASSES} == {sum("truck" in r["text"] for r in rows)}
    assert {r["id"] for r in capped} == {r["id"] for r in chosen(coyo, tmp_path / "cap2", "--per-class", "12")}
    other = chosen(coyo, tmp_path / "seed", "--per-class", "12", "--seed", "1")
    assert {r["id"] for r in capped} != {r["id"] for r in other}
    fewer = chosen(coyo, tmp_path / "few", "--per-class", "5")
    assert {r["id"] for r in fewer} < {r["id"] for r in capped}
    sides = {r["id"]: r["split"] for r in capped}
    assert all(sides[r["id"]] == r["split"] for r in fewer if r["split"] == "val")


def test_the_held_out_share_is_about_val_fraction(tmp_path: Path) -> None:
    found = chosen(write(tmp_path / "coyo", many(60)), tmp_path / "out", "--val-fraction", "0.25")
    assert 110 <= sum(r["split"] == "val" for r in found) <= 190
    assert card(tmp_path / "out")["chosen"]["cat"]["val"] == sum(
        r["split"] == "val" and r["label"] == "cat" for r in found
    )


TEXTS = st.sampled_from(
    ["a cat is here", "the dog and the cat", "one hot dog here", "two ships at sea", "nothing at all"]
)
ROWS = st.lists(
    st.builds(
        lambda text, url, phash, width: {
            "text": text,
            "url": f"http://x.invalid/{url}",
            "image_phash": phash,
            "width": width,
        },
        TEXTS,
        st.integers(0, 6),
        st.sampled_from([None, "0a", "0b", "0c"]),
        st.sampled_from([200, 300, 400]),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=20)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([[], ["--per-class", "1"]]))
def test_the_order_of_rows_and_files_does_not_matter(changes: list[dict[str, Any]], draws, files: int, words) -> None:
    rows = [row(k, **change) for k, change in enumerate(changes)] + [row(99, "a bird on a branch")]
    mixed = draws.sample(rows, len(rows))
    with TemporaryDirectory() as name:
        folder = Path(name)
        once = chosen(write(folder / "a", rows), folder / "one", *words)
        again = chosen(
            write(folder / "b", *(mixed[i::files] for i in range(files) if mixed[i::files])), folder / "two", *words
        )
        assert once == again
        assert card(folder / "one")["fingerprint"] == card(folder / "two")["fingerprint"]
        assert len({r["url"] for r in once}) == len(once)


def test_an_existing_selection_is_reused_and_another_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coyo, out = write(tmp_path / "coyo", many(3)), tmp_path / "out"
    chosen(coyo, out, "--per-class", "2")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    chosen(coyo, out, "--per-class", "2")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    call = ["--coyo", str(coyo), "--out", str(out)]
    assert "another selection: 'per_class' is 1, there 2" in failing(capsys, *call, "--per-class", "1")
    assert "'filters.min_clip' is 0.3, there 0.25" in failing(capsys, *call, "--per-class", "2", "--min-clip", "0.3")
    write(coyo, many(4))
    assert "another selection: 'coyo' is other files" in failing(capsys, *call, "--per-class", "2")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_globs_and_single_files(tmp_path: Path) -> None:
    coyo = write(tmp_path / "coyo", many(1), [row(50, "a cat more")])
    assert len(chosen(f"{coyo}/part-*.parquet", tmp_path / "glob")) == 11
    assert len(chosen(coyo / "part-00001.parquet", tmp_path / "file")) == 1
    parts = card(tmp_path / "glob")["source"]["parts"]
    assert [part["file"] for part in parts] == ["part-00000.parquet", "part-00001.parquet"]
    assert all(len(part["sha256"]) == 64 for part in parts)


def test_a_list_of_other_classes(tmp_path: Path) -> None:
    words = tmp_path / "mine.yaml"
    words.write_text("tree: {words: [tree, oak], not: [tree house]}\nhouse: {words: [house]}\n")
    coyo = write(
        tmp_path / "coyo", [row(0, "an old oak tree"), row(1, "my tree house here"), row(2, "some white houses")]
    )
    assert [r["label"] for r in chosen(coyo, tmp_path / "out", "--words", str(words), "--val-fraction", "0.5")] in (
        ["tree", "house"],
        ["house", "tree"],
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coyo", "nowhere/at/all"], "no such folder, no file matches"),
        (["--coyo", "EMPTY"], "has no *.parquet file"),
        (["--coyo", "BROKEN"], "part-00000.parquet is not a readable parquet file"),
        (["--coyo", "COLUMN"], "has no column 'watermark_score', which COYO-700M has; did you mean 'watermark'?"),
        (["--coyo", "TYPE"], "column 'width': not int64"),
        (["--coyo", "NONE"], "no row of 1 passes; dropped by no class word: 1"),
        (["--coyo", "GOOD", "--min-words", "9", "--max-words", "3"], "--min-words is 9, above --max-words 3"),
        (["--coyo", "GOOD", "--max-aspect", "0.5"], "--max-aspect is 0.5"),
        (["--coyo", "GOOD", "--min-clip", "31"], "--min-clip is 31.0; it must be at least 0 and at most 1"),
        (["--coyo", "GOOD", "--val-fraction", "1"], "--val-fraction is 1.0"),
        (["--coyo", "GOOD", "--timeout", "0"], "--timeout is 0; it must be at least 1"),
        (["--coyo", "GOOD", "--words", "no.yaml"], "the word list no.yaml: no such file"),
    ],
)
def test_errors_are_one_sentence_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    good = row(0, "a cat is here")
    unmarked = {("watermark" if key == "watermark_score" else key): value for key, value in good.items()}
    rows = {"GOOD": [good], "COLUMN": [unmarked], "TYPE": [good | {"width": "wide"}], "NONE": [row(0, "a chair")]}
    for name, content in rows.items():
        write(tmp_path / name, content)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "part-00000.parquet").write_bytes(b"PAR1 and no more")
    words = [str(tmp_path / word) if (tmp_path / word).is_dir() else word for word in words]
    assert message in failing(capsys, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_option_of_the_wrong_size_is_rejected_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "cifar-captions", "--coyo", str(tmp_path), "--out", str(tmp_path / "out"), "--per-class", "0"]
    assert main(words) == 2
    assert "argument --per-class: '0' is not a whole number from 1" in capsys.readouterr().err


class Stream:
    """Imitate the used part of a streamed dataset of the library `datasets`."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self.column_names = table, table.column_names

    def select_columns(self, names: list[str]) -> Stream:
        return Stream(self._table.select(names))

    def with_format(self, name: str) -> Stream:
        assert name == "arrow"
        return self

    def iter(self, batch_size: int) -> Any:
        for batch in self._table.to_batches(7):
            yield pa.Table.from_batches([batch])


def test_a_dataset_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--coyo", "kakaobrain/coyo-700m", "--out", str(tmp_path / "out")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'microdit[hub]'" in failing(capsys, *call)
    hub: Any = types.ModuleType("datasets")

    def load_dataset(name: str, split: str, streaming: bool) -> Stream:
        assert (name, split, streaming) == ("kakaobrain/coyo-700m", "train", True)
        return Stream(pa.Table.from_pylist(many(2)))

    hub.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", hub)
    streamed = chosen("kakaobrain/coyo-700m", tmp_path / "out")
    assert streamed == chosen(write(tmp_path / "coyo", many(2)), tmp_path / "local")
    assert card(tmp_path / "out")["source"]["parts"][0]["dataset"] == "kakaobrain/coyo-700m"
