"""Fuzz every reader: reading any file succeeds or raises one of the project's own errors."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes, structured
from readers import Reader, readers

from analysis.errors import ReportError
from microdit.common.errors import MicroditError

QUICK, QUICK_OF_SLOW = 12, 5  # cases per reader in the default run
THOROUGH, THOROUGH_OF_SLOW = 800, 320  # with -m slow: more than 20,000 in total
NAMES = [
    "config.yaml", "a study's YAML", "a search's YAML", "prompts, one per line", "COCO captions", "metadata.jsonl",
    "metadata.csv", "a caption beside its image", "prompts.json of a folder", "the word list", "card.json",
    "an index of latents", "a shard of latents", "latents by their index", "a store of captions", "an MDS index",
    "safetensors", "facts of safetensors", "a checkpoint's state", "an optimizer's state",
    "an index of shards", "a model's JSON",
    "an autoencoder's configuration", "a claim", "study.yaml of a launch", "config.yaml in a report",
    "prompts.json in a report", "a PNG image", "a JPEG image", "a WEBP image", "a GIF image", "a BMP image",
    "a TIFF image",
]  # fmt: skip


@cache
def _table() -> dict[str, Reader]:
    return {reader.name: reader for reader in readers()}


def test_the_table_is_complete_and_its_seeds_are_read(tmp_path: Path) -> None:
    assert list(_table()) == NAMES
    fails = {
        "prompts.json of a folder",
        "an autoencoder's configuration",
        "a checkpoint's state",
        "an optimizer's state",
    }
    for number, (name, reader) in enumerate(_table().items()):
        folder = _folder(tmp_path / str(number), reader)
        (folder / reader.file).write_bytes(reader.seed)
        if name in fails:  # their other files are not real: they are rejected after the mutated one was read
            with pytest.raises(MicroditError):
                reader.read(folder)
        else:
            reader.read(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_rejected(name: str, tmp_path: Path) -> None:
    _fuzz(name, tmp_path, QUICK_OF_SLOW if _table()[name].slow else QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_damaged_files_are_read_or_rejected(name: str, tmp_path: Path) -> None:
    _fuzz(name, tmp_path, THOROUGH_OF_SLOW if _table()[name].slow else THOROUGH)


def _fuzz(name: str, root: Path, cases: int) -> None:
    reader = _table()[name]
    folder = _folder(root / "step_00000005", reader)
    file = folder / reader.file
    inputs: st.SearchStrategy[bytes] = mutated_bytes(reader.seed)
    if reader.kind != "bytes":
        inputs = st.one_of(inputs, structured(reader.seed, reader.kind))

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(data=inputs)
    def run(data: bytes) -> None:
        file.write_bytes(data)
        _rejected(lambda: reader.read(folder))

    run()


def _rejected(call: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except (MicroditError, ReportError) as error:
            text = str(error)
            assert 0 < len(text) < 2300, text[:100]
            assert all(c.isprintable() or c in "\n\t" for c in text), repr(text)


def _folder(path: Path, reader: Reader) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name, content in reader.beside.items():
        (path / name).write_bytes(content)
    return path
