"""Test that cached data is verified before use, and recomputed with one log line if it is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microdit.alignment.config import AlignmentConfig
from microdit.config.schema import Config
from microdit.pipeline.inputs import build_components


def flipped(content: bytes) -> bytes:
    """Replace a value in the middle of the file by another of the same size."""
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def read(config: Config) -> list[torch.Tensor]:
    """Return the data that training reads of the first images."""
    found = build_components(config)
    rows = torch.arange(16).numpy()
    tensors = [found.train.targets.batch(rows)]
    for split in (found.train, found.val):
        latents, captions = split.batch(rows)
        assert isinstance(captions, torch.Tensor)
        tensors += [latents, captions]
    return tensors


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        *(pytest.param(cut, marks=pytest.mark.slow) for cut in (lambda content: content[:-3], lambda content: b"")),
    ],
)
def test_a_damaged_cache_file_is_made_again_and_reported(
    smoke_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    data = replace(smoke_config.data, train_size=16, val_size=16)
    alignment = AlignmentConfig(encoder="efficientnet-lite0")
    config = replace(smoke_config, cache_dir=str(tmp_path), data=data, alignment=alignment)
    first = read(config)
    kinds = (
        "encoded/*/0*.safetensors",
        "encoded/*/*.json",
        "encoded/captions-*/*.safetensors",
        "patches/*/features.npy",
    )
    for kind in (*kinds, "patches/*/header.json"):
        files = {path: path.read_bytes() for path in tmp_path.glob(kind)}
        assert files
        for path, content in files.items():
            times = path.stat()
            path.write_bytes(damage(content))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        caplog.clear()
        again = read(config)
        assert all(map(torch.equal, first, again))
        lines = [record.getMessage() for record in caplog.records]
        for path, content in files.items():
            assert path.read_bytes() == content
            assert any(str(path.parent) in line for line in lines), (path, lines)
        assert len(lines) <= len(files)
    caplog.clear()
    assert all(map(torch.equal, first, read(config)))
    assert not caplog.records
