"""Test atomic writes, cleanup after killed writers, and digests that detect every change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microdit.common.files.atomic import atomic_path, stat_fingerprint, sweep
from microdit.common.files.digests import content_digest, read_signed, signed
from microdit.config.schema import Config
from microdit.pipeline.train_and_evaluate import run

WRITER = """
import sys, time
from pathlib import Path
from microdit.common.files.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "half").write_text("a")
    print("ready", flush=True)
    time.sleep(600)
"""


def leave(target: Path) -> Path:
    """Kill a process that writes `target`; return the files that remain."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    [left] = target.parent.glob(f".{target.name}.*")
    assert sweep(target.parent) == []  # it lives
    writer.kill()
    writer.wait()
    return left


def test_a_dead_writers_folder_is_swept_at_the_next_start(smoke_config: Config, tmp_path: Path) -> None:
    out, cache = Path(smoke_config.output_dir), Path(smoke_config.cache_dir)
    places = (out / "model.safetensors", out / "checkpoints" / "step_00000004", cache / "encoded" / "abc" / "shard")
    left = []
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        left.append(leave(place))
    run(smoke_config)
    assert not any(path.exists() for path in left)
    shutil.rmtree(cache / "encoded" / "abc")


def old(path: Path) -> Path:
    for found in (*path.rglob("*"), path):
        os.utime(found, (1e9, 1e9))
    return path


def test_folders_of_unknown_writers_are_swept_by_age_and_others_kept(tmp_path: Path) -> None:
    fresh, aged, mine = (
        tmp_path / name for name in (".step_00000004.ab12cd34", ".step_00000002.zz_zz_zz", ".a.backup01")
    )
    for folder, name in ((fresh, "step_00000004"), (aged, "step_00000002"), (mine, "photos")):
        (folder / name).mkdir(parents=True)
    old(aged)
    old(mine)
    far = tmp_path / ".final.png.aaaaaaaa"
    far.mkdir()
    (far / "final.png").write_bytes(b"")
    (far / "owner-0123456789abcdef").write_bytes(b"")  # a writer on another machine
    assert sweep(tmp_path) == [aged]
    old(far)
    assert sweep(tmp_path) == [far]
    assert sorted(tmp_path.iterdir()) == sorted([fresh, mine])


def test_an_empty_folder_is_swept_after_a_minute(tmp_path: Path) -> None:
    """A writer was killed before it locked its folder, or while it removed it."""
    new, left = tmp_path / ".model.safetensors.abcd1234", tmp_path / ".model.safetensors.efgh5678"
    for path, age in ((new, 0), (left, 61)):
        path.mkdir()
        os.utime(path, (time.time() - age,) * 2)
    assert sweep(tmp_path) == [left]
    assert new.is_dir()


def test_a_replacement_interrupted_between_its_two_renames_is_completed(tmp_path: Path) -> None:
    scratch = tmp_path / ".data.ab12cd34"
    for name in ("old", "data"):
        (scratch / name).mkdir(parents=True)
        (scratch / name / "which").write_text(name)
    old(scratch)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "which").read_text() == "data"


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")
    with pytest.raises(UnicodeEncodeError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half \udcff", encoding="utf-8")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_of_any_length_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127, "\udcff\udcfe"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"


def test_the_same_size_and_time_do_not_hide_other_content(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("one")
    os.utime(path, (1e9, 1e9))
    before = content_digest(path), stat_fingerprint(path.parent)
    path.write_text("two")
    os.utime(path, (1e9, 1e9))
    after = content_digest(path), stat_fingerprint(path.parent)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"a": 1}', '{"a": 1, "sha256": "00"}', "\xff"])
def test_signed_json_is_what_was_written_or_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(signed({"a": 1.5, "b": ["ä", None]}))
    assert read_signed(path) == {"a": 1.5, "b": ["ä", None]}
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"a": 1.25}))
    with pytest.raises(ValueError, match="wrong checksum"):
        read_signed(path)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"."):
        read_signed(path)
