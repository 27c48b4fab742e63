"""Test `microdit data cifar10` on a small archive in CIFAR-10's on-disk format."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microdit.cli.main import main
from microdit.data import cifar10
from microdit.data.cifar10 import CLASSES
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset

BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


def pixels(batch: int) -> np.ndarray:
    """Return twenty rows of 3072 bytes, planes of red, green and blue, row by row."""
    return np.random.default_rng(batch).integers(0, 256, (20, 3072), np.uint8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an archive of twenty images per batch, two per class, and its own MD5 in place of the published one's."""
    folder = tmp_path / "cifar"
    folder.mkdir()
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as archive:
        for place, name in enumerate(BATCHES):
            labels = np.arange(20, dtype=np.uint8)[:, None] % 10
            content = np.concatenate([labels, pixels(place)], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = hashlib.md5((folder / cifar10.ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", digest)
    return folder


def test_images_labels_splits_and_captions(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "cifar10", "--root", str(root), "--out", str(tmp_path / "out")]) == 0
    assert "100 images for train, 20 for val" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [CLASSES[k % 10] for k in range(120)]
    assert [row["split"] for row in rows] == ["train"] * 100 + ["val"] * 20
    for row in rows:
        said = {"airplane": ("airplane", "plane"), "automobile": ("automobile", "car")}.get(
            row["label"], (row["label"],)
        )
        assert any(word in row["text"].replace(",", "").split() for word in said)
    assert len({row["text"] for row in rows}) > 30
    first = pixels(1)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    with Image.open(tmp_path / "out" / rows[20]["file_name"]) as image:
        assert (np.asarray(image) == first).all()
    data = build_dataset(DataConfig(name="folder", path=str(tmp_path / "out"), resolution=32), "val")
    assert (len(data), data.classes) == (20, CLASSES)


def test_the_seed_draws_the_captions(root: Path, tmp_path: Path) -> None:
    texts = []
    for place, seed in enumerate((0, 0, 1)):
        assert (
            main(["data", "cifar10", "--root", str(root), "--out", str(tmp_path / f"{place}"), "--seed", f"{seed}"])
            == 0
        )
        texts.append((tmp_path / f"{place}" / "metadata.jsonl").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_faults_are_reported(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*words: str) -> str:
        assert main(["data", "cifar10", *words]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "cifar-10-binary.tar.gz is missing (--download fetches it)" in failing("--root", str(tmp_path), "--out", out)
    assert "exists already; choose a new folder" in failing("--root", str(root), "--out", str(tmp_path))
    damaged = root / cifar10.ARCHIVE
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "is not the published file" in failing("--root", str(root), "--out", out)
    assert not Path(out).exists()
