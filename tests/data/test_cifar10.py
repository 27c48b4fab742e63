"""`microdit data cifar10`, on a small archive in CIFAR-10's own on-disk format."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from microdit.cli import main
from microdit.data.base import DataConfig, build_dataset
from microdit.data.cifar10 import CLASSES

BATCHES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty images a batch, two of a class: rows of 3072 bytes, planes of red, green and blue, row by row.

    torchvision knows CIFAR-10's files by their MD5; here it is told those of the small ones.
    """
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = {}
    for place, name in enumerate(BATCHES):
        dice = np.random.default_rng(place)
        content = {
            b"batch_label": name.encode(),
            b"labels": [k % 10 for k in range(20)],
            b"data": dice.integers(0, 256, (20, 3072), np.uint8),
            b"filenames": [f"{k}.png".encode() for k in range(20)],
        }
        sums[name] = _write(folder / name, {key.decode(): value for key, value in content.items()})
    meta = {"num_cases_per_batch": 20, "label_names": list(CLASSES), "num_vis": 3072}
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setitem(cifar.meta, "md5", _write(folder / "batches.meta", meta))
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(cifar, "test_list", [[BATCHES[5], sums[BATCHES[5]]]])
    return tmp_path / "cifar"


def _write(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


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
    with open(root / "cifar-10-batches-py" / "data_batch_2", "rb") as stream:
        first = pickle.load(stream)["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
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


def test_faults_are_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(*words: str) -> str:
        assert main(["data", "cifar10", *words]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "CIFAR-10 can't be opened: Dataset not found or corrupted" in failing("--root", str(tmp_path), "--out", out)
    assert "is there already; choose a new folder" in failing("--root", str(root), "--out", str(tmp_path))
    damaged = root / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "CIFAR-10 can't be opened" in failing("--root", str(root), "--out", out)
    assert not Path(out).exists()
