"""Test further sources of `microdit data encode`: `datasets`, webdataset tars, MDS folders.

By default a stand-in replaces mosaicml-streaming. A test marked slow reads a folder with the library that wrote it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from microdit.cli.main import main
from microdit.common.errors import ConfigError
from microdit.common.files.digests import read_signed, signed
from microdit.data.latents.caption_store import CaptionStore
from microdit.data.latents.reader import EncodedImages, open_images, read_index
from microdit.encoders.config import TextConfig
from microdit.encoders.text import build_text_encoder
from microdit.pipeline.inputs import build_components
from sweeps.config.hydra_compose import compose_config

SIDE = 16
HUB = "datasets isn't installed: pip install 'microdit[hub]'"


def encode(source: Path | str, out: Path, *more: str) -> int:
    line = f"--out {out} --resolution {SIDE} --shard-size 4 --device cpu"
    given = [] if "--autoencoder" in more else ["--autoencoder", "pixels"]
    return main(["data", "encode", str(source), *line.split(), *given, *more])


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(number)).save(stream, "PNG")
    return stream.getvalue()


def as_pictures(images: EncodedImages) -> np.ndarray:
    """Return the pixels of latents, (N, H, W, 3)."""
    z = images.take(np.arange(len(images))).astype(np.float32)
    return np.round((z + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


# ---- datasets and tars ----


def tar(path: Path, numbers: range, changed: dict[str, bytes] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for i in numbers:
            for name, data in ((f"{i:03}.png", png(i)), (f"{i:03}.txt", f"picture {i}".encode())):
                data = (changed or {}).get(name, data)
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def test_without_the_package_the_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    tar(tmp_path / "0.tar", range(1))
    assert encode(tmp_path / "*.tar", tmp_path / "out") == 2
    assert "pip install 'microdit[hub]'" in capsys.readouterr().err


def test_an_unknown_source_lists_the_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert encode(tmp_path / "nothing", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("folder of captioned images", "hf:NAME", "webdataset tars", "MDS"))


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ones((9, 9), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def test_captions_of_tars_follow_the_rule_of_text_files(tmp_path: Path):
    pytest.importorskip("datasets", reason=HUB)
    changed = {"003.txt": "\ufeffone\u2028two \x85 three\r\n".encode()}
    tar(tmp_path / "0.tar", range(10), changed)
    assert encode(tmp_path / "*.tar", tmp_path / "out") == 0
    assert open_images(tmp_path / "out").caption(3) == "one two three"


def test_tars_are_read_in_order_and_resume(tmp_path: Path):
    pytest.importorskip("datasets", reason=HUB)
    tar(tmp_path / "00.tar", range(5))
    tar(tmp_path / "01.tar", range(5, 10))
    for part in ("1/2", "0/2"):
        assert encode(tmp_path / "*.tar", tmp_path / "out", "--shard", part, "--val-fraction", "0.3") == 0
    images = open_images(tmp_path / "out")
    assert np.array_equal(as_pictures(images), np.stack([picture(i) for i in range(10)]))
    assert [images.caption(i) for i in range(10)] == [f"picture {i}" for i in range(10)]
    held_out = open_images(tmp_path / "out", "val")
    assert 0 < len(held_out) < 10
    again = tmp_path / "again"
    assert encode(tmp_path, again, "--val-fraction", "0.3") == 0  # the folder of the tars
    found = open_images(again, "val")
    assert [found.key(i) for i in range(len(found))] == [held_out.key(i) for i in range(len(held_out))]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"008.txt": b"caf\xe9"}, "the caption after 007 is not UTF-8"),
        ({"008.png": b""}, "image 008 of"),
        ({"008.txt": b""}, "008 has no caption"),
        ({"008.txt": b"a\0b"}, "the caption of 008: the text has a NUL"),
        ({"008.png": float_tiff()}, "floating-point"),
        ({"001.txt": b"caf\xe9"}, "one of the first captions is not UTF-8"),
    ],
)
def test_a_bad_sample_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, bytes], message: str
):
    pytest.importorskip("datasets", reason=HUB)
    tar(tmp_path / "0.tar", range(10), changed)
    assert encode(tmp_path / "*.tar", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    done = 2 if message.find("first") < 0 else 0
    assert len(list((tmp_path / "out").glob("0*.safetensors"))) == done  # finished shards are kept


def test_saved_datasets_keep_their_splits_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    datasets = pytest.importorskip("datasets", reason=HUB)
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )

    def rows(numbers: range) -> Any:
        columns = {
            "photo": [{"bytes": png(i), "path": None} for i in numbers],
            "text": [f"picture {i}" for i in numbers],
            "label": [i % 2 for i in numbers],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    splits = {"train": rows(range(6)), "validation": rows(range(6, 9))}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert encode(tmp_path / "saved", tmp_path / "out") == 2
    assert "--image-column" in capsys.readouterr().err
    assert encode(tmp_path / "saved", tmp_path / "out", "--image-column", "photo") == 0
    assert read_index(tmp_path / "out")["classes"] == ["cat", "dog"]
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        images = open_images(tmp_path / "out", split)
        assert np.array_equal(as_pictures(images), np.stack([picture(i) for i in numbers]))
        assert images.labels.tolist() == [i % 2 for i in numbers]


# ---- MDS ----

STAND_IN = """
import json, pathlib
class Shard:
    column_names, column_encodings = [], []
class StreamingDataset:
    def __init__(self, local, remote, shuffle, batch_size):
        self.rows = json.loads(pathlib.Path(local, "rows.json").read_text())
        self.shards = [Shard()]
        Shard.column_names = list(self.rows[0])
        Shard.column_encodings = ["str" if name == "caption" else "bytes" for name in self.rows[0]]
        print("the library may print what it likes")
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, i):
        return {k: v if k == "caption" else bytes.fromhex(v) for k, v in self.rows[i].items()}
"""
WRITER = """
import json, pathlib, sys
from streaming import MDSWriter
rows = json.loads(pathlib.Path(sys.argv[1]).read_text())
columns = {k: "str" if k == "caption" else "bytes" for k in rows[0]}
with MDSWriter(out=sys.argv[2], columns=columns, compression="zstd", size_limit=1 << 14) as writer:
    for row in rows:
        writer.write({k: v if k == "caption" else bytes.fromhex(v) for k, v in row.items()})
"""


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Ten samples as the released code writes them, with 256 px latents and the shipped text encoder's features."""
    captions = [f"a cat number {i % 3}" for i in range(10)]
    features = build_text_encoder(TextConfig()).encode(captions)
    assert isinstance(features, torch.Tensor)
    draw = np.random.default_rng(0)
    return [
        {
            "caption": caption,
            "caption_latents": features[i].half().numpy().tobytes().hex(),
            "latents_256": draw.standard_normal((4, 32, 32)).astype(np.float16).tobytes().hex(),
        }
        for i, caption in enumerate(captions)
    ]


@pytest.fixture(params=["stand_in", pytest.param("real", marks=pytest.mark.slow)])
def mds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> tuple[Path, Path]:
    """Return an MDS folder and a Python that reads it."""
    home = tmp_path_factory.mktemp("mds")
    (home / "data").mkdir()
    (home / "data" / "rows.json").write_text(json.dumps(rows))
    if request.param == "real":
        found = os.environ.get("MICRODIT_STREAMING", "~/.cache/microdit/mosaicml-streaming/bin/python")
        python = Path(found).expanduser()
        if not python.is_file():
            pytest.skip("mosaicml-streaming isn't installed; MICRODIT_STREAMING=PYTHON names a Python that has it")
        words = [str(python), "-c", WRITER, str(home / "data" / "rows.json"), str(home / "written")]
        subprocess.run(words, check=True)
        return home / "written", python
    (home / "data" / "index.json").write_text(json.dumps({"version": 2, "shards": [{"format": "mds"}]}))
    (home / "streaming").mkdir()
    (home / "streaming" / "__init__.py").write_text(STAND_IN)
    (home / "mosaicml_streaming-0.13.0.dist-info").mkdir()
    facts = "Metadata-Version: 2.1\nName: mosaicml-streaming\nVersion: 0.13.0\n"
    (home / "mosaicml_streaming-0.13.0.dist-info" / "METADATA").write_text(facts)
    python = home / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{home}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return home / "data", python


def put(mds: tuple[Path, Path], out: Path, *more: str) -> int:
    folder, python = mds
    words = f"data encode {folder} --out {out} --streaming {python} --shard-size 4 --device cpu"
    return main([*words.split(), *more])


def vae(folder: Path) -> Path:
    """Return a small autoencoder of the released latents' shape: 4 channels, factor 8."""
    from diffusers import AutoencoderKL

    kinds: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4}
    kinds |= {"up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (2, 2, 2, 2)}
    AutoencoderKL(**kinds, norm_num_groups=1, latent_channels=4).save_pretrained(folder)
    return folder


def test_released_latents_are_copied_unchanged(
    mds: tuple[Path, Path], tmp_path: Path, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
):
    more = ("--autoencoder", str(vae(tmp_path / "vae")), "--val-fraction", "0.3")
    assert put(mds, tmp_path / "out", *more, "--captions", "--text", "builtin") == 0
    images = open_images(tmp_path / "out")
    expected = [np.frombuffer(bytes.fromhex(row["latents_256"]), np.float16).reshape(4, 32, 32) for row in rows]
    assert np.array_equal(images.take(np.arange(10)), np.stack(expected))
    held_out = open_images(tmp_path / "out", "val")
    assert read_index(tmp_path / "out")["statistics"]["val"]["images"] == len(held_out)
    store = CaptionStore(next((tmp_path / "out").glob("captions-*/")))
    assert len(store) == 3
    found = store.take(store.rows(images.digests[:1]))
    assert isinstance(found, torch.Tensor)
    stored = np.frombuffer(bytes.fromhex(rows[0]["caption_latents"]), np.float16).reshape(found.shape)
    assert np.array_equal(found.half().numpy(), stored)
    line = f"scale=smoke data=latents data.path={tmp_path / 'out'} data.resolution=256 model.input_size=32"
    data = build_components(compose_config([*line.split(), f"cache_dir={tmp_path / 'cache'}"])).train
    assert data.batch(np.array([0]))[0].shape == (1, 4, 32, 32)
    assert not list((tmp_path / "cache").glob("encoded/captions-*"))


def test_features_of_another_encoder_are_rejected(
    mds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    more = ("--autoencoder", str(vae(tmp_path / "vae")), "--captions", "--text", "builtin")
    assert put(mds, tmp_path / "out", *more, "--text-layer", "penultimate") == 2
    assert "caption_latents differ from the features of --text builtin" in capsys.readouterr().err
    assert put(mds, tmp_path / "out", "--autoencoder", "builtin") == 2
    assert "has 4 channels and a factor of 4, but the latents are 4 x 32 x 32" in capsys.readouterr().err
    assert put(mds, tmp_path / "out", *more[:2], "--resolution", "512") == 2
    assert "has latents_256, but --resolution 512 needs latents_512" in capsys.readouterr().err


def test_features_of_an_unknown_encoder_must_have_the_same_layer(mds: tuple[Path, Path], tmp_path: Path):
    """Released features come without their encoder's name: only sizes and the layer can be compared."""
    out = tmp_path / "out"
    more = ("--autoencoder", str(vae(tmp_path / "vae")), "--val-fraction", "0.3", "--captions", "--text", "builtin")
    assert put(mds, out, *more) == 0
    store = next(out.glob("captions-*"))
    header = read_signed(store / "header.json")
    (store / "header.json").write_text(signed(header | {"fingerprint": None, "path": None}))
    store.rename(out / "captions-given")
    words = ["scale=smoke", "data=latents", f"data.path={out}", "data.resolution=256", "model.input_size=32"]
    words.append(f"cache_dir={tmp_path / 'cache'}")
    assert len(build_components(compose_config(words)).train)
    with pytest.raises(ConfigError, match=r"'text\.layer' is penultimate, but .*captions-given are of layer 'last'"):
        build_components(compose_config([*words, "text.layer=penultimate"]))


def test_a_python_without_the_library_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [{"format": "mds"}]}))
    assert put((tmp_path, Path(sys.executable)), tmp_path / "out") == 2
    assert "can't import streaming" in capsys.readouterr().err
