"""Test `microdit data encode` and training on it: same results as on the fly, resuming, verified files."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from real_formats import FLUX, autoencoder_folder
from safetensors.torch import load_file

from microdit.cli.main import main
from microdit.common.errors import ConfigError, DataError
from microdit.config.identity import trial_key
from microdit.config.schema import Config
from microdit.data.config import DataConfig
from microdit.data.latents.reader import open_images, read_index
from microdit.data.latents.shards import ConcatArray
from microdit.data.registry import build_dataset
from microdit.encoders.autoencoder import KLAutoencoder, build_autoencoder
from microdit.encoders.config import AutoencoderConfig
from microdit.encoders.text import ClipText
from microdit.pipeline.inputs import build_components
from microdit.pipeline.train_and_evaluate import run
from sweeps.config.hydra_compose import compose_config

COUNT, SIDE = 40, 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of captioned images and a 16-channel autoencoder, encoded with its captions into `done`."""
    root = tmp_path_factory.mktemp("latents")
    draw = np.random.default_rng(0)
    (root / "images").mkdir()
    rows = []
    for i in range(COUNT):
        Image.fromarray(draw.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(root / "images" / f"{i:02}.png")
        rows.append({"file_name": f"{i:02}.png", "text": f"picture {i % 7}", "label": "ab"[i % 2]})
    (root / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    autoencoder_folder(root / "vae", levels=2, **FLUX)
    assert encode(root, root / "done", "--captions") == 0
    return root


def encode(place: Path, out: Path, *more: str) -> int:
    line = f"data encode {place / 'images'} --out {out} --resolution {SIDE} --shard-size 16 --device cpu"
    given = [] if "--autoencoder" in more else ["--autoencoder", str(place / "vae")]
    return main([*line.split(), *given, *more])


def config_of(place: Path, cache: Path, *more: str) -> Config:
    fixed = f"scale=smoke data.resolution={SIDE} model.in_channels=16 data.train_size=999 data.val_size=99"
    # Two tests' configurations share only the values given here.
    rest = f"training.device=cpu evaluation.samples=0 cache_dir={cache} output_dir={cache / 'run'}"
    return compose_config([*fixed.split(), *rest.split(), *more])


def on_latents(folder: Path, cache: Path, *more: str) -> Config:
    return config_of(folder.parent, cache, "data=latents", f"data.path={folder}", *more)


def on_the_fly(place: Path, cache: Path) -> Config:
    return config_of(place, cache, "data=folder", f"data.path={place / 'images'}", f"autoencoder.path={place / 'vae'}")


def copy_of(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "done", tmp_path / "copy")
    return tmp_path / "copy"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("0*.safetensors"))


# ---- valid input ----


def test_training_on_latents_equals_training_on_the_images(place: Path, tmp_path: Path):
    fly = run(on_the_fly(place, tmp_path / "a"))
    stored = run(on_latents(place / "done", tmp_path / "b"))
    assert stored["final/val_loss"] == pytest.approx(fly["final/val_loss"], rel=1e-6)
    weights = [load_file(tmp_path / name / "run" / "model.safetensors") for name in "ab"]
    for name, tensor in weights[0].items():  # not to the last bit: other images are side by side in a batch
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-5)
    assert not list((tmp_path / "b").glob("encoded/captions-*"))  # the folder's own were read


def test_captions_need_not_be_stored(place: Path, tmp_path: Path):
    assert encode(place, tmp_path / "bare") == 0
    kept = on_latents(place / "done", tmp_path)
    losses = [run(dataclasses.replace(kept, output_dir=str(tmp_path / "one")))["final/val_loss"]]
    for name, more in (("two", ()), ("three", ("text.cache=false",))):
        bare = on_latents(tmp_path / "bare", tmp_path / name, *more)
        losses.append(run(bare)["final/val_loss"])
        assert bool(list((tmp_path / name).glob("encoded/captions-*"))) == (name == "two")
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert trial_key(on_latents(tmp_path / "bare", tmp_path, "text.cache=false")) == trial_key(
        on_latents(tmp_path / "bare", tmp_path)
    )


def test_the_index_describes_the_data(place: Path):
    index = read_index(place / "done")
    autoencoder = build_autoencoder(AutoencoderConfig(str(place / "vae")))
    folder = DataConfig(name="folder", path=str(place / "images"), resolution=SIDE)
    train, val = (build_dataset(folder, split) for split in ("train", "val"))
    z = torch.cat([autoencoder.encode(torch.from_numpy(train[i].image)[None]) for i in range(len(train))])
    assert index["sigma_data"]["train"] == pytest.approx(z.double().std(correction=0).item(), rel=1e-6)
    assert index["latents"] == {"shape": [16, 8, 8], "dtype": "float16"}
    assert index["autoencoder"]["scaling_factor"] == 0.3611
    assert index["autoencoder"]["shift_factor"] == 0.1159
    assert index["autoencoder"]["fingerprint"] == autoencoder.fingerprint
    assert (index["statistics"]["train"]["images"], index["statistics"]["val"]["images"]) == (len(train), len(val))
    encoded = open_images(place / "done", "train")
    assert [encoded.caption(i) for i in range(len(train))] == [train[i].caption for i in range(len(train))]
    np.testing.assert_allclose(encoded.take(np.array([5, 0])), z[[5, 0]], atol=2e-3)
    back = autoencoder.decode(torch.from_numpy(encoded.take(np.arange(16)).astype(np.float32))).float()
    error = (back - torch.from_numpy(np.stack([train[i].image for i in range(16)])).float()) / 255
    expected = -10 * error.square().mean((1, 2, 3)).log10()
    assert index["round_trip"]["psnr_db"] == pytest.approx(expected.mean().item(), abs=0.3)


def test_images_are_decoded_latents_or_the_originals(place: Path):
    config = DataConfig(name="latents", path=str(place / "done"), resolution=SIDE)
    decoded = build_dataset(config, "val")
    originals = build_dataset(dataclasses.replace(config, originals=str(place / "images")), "val")
    folder = build_dataset(DataConfig(name="folder", path=str(place / "images"), resolution=SIDE), "val")
    assert len(decoded) == len(folder)
    assert decoded.classes == folder.classes
    for i in range(len(folder)):
        assert np.array_equal(originals[i].image, folder[i].image)
        assert (decoded[i].caption, decoded[i].label) == (folder[i].caption, folder[i].label)
    autoencoder = build_autoencoder(AutoencoderConfig(str(place / "vae")))
    z = open_images(place / "done", "val").take(np.array([0])).astype(np.float32)
    assert np.array_equal(decoded[0].image, autoencoder.decode(torch.from_numpy(z))[0].numpy())
    assert decoded.fingerprint != originals.fingerprint


def test_rows_of_several_files_are_one_array():
    parts = [np.arange(6).reshape(3, 2), np.zeros((0, 2), int), np.arange(6, 10).reshape(2, 2)]
    rows = ConcatArray(parts)
    assert rows.shape == (5, 2)
    assert np.array_equal(rows.take(np.array([4, 0, 3, 0])), np.concatenate(parts)[[4, 0, 3, 0]])


def test_several_processes_write_the_same_as_one(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for part in ("1/2", "0/2"):
        assert not (tmp_path / "index.json").exists()
        assert encode(place, tmp_path, "--captions", "--shard", part) == 0
    assert [path.name for path in shards(tmp_path)] == [path.name for path in shards(place / "done")]
    assert read_index(tmp_path)["fingerprint"] == read_index(place / "done")["fingerprint"]
    assert "2  shards are not written yet by other processes" in capsys.readouterr().out


# ---- interruptions ----


def test_a_killed_encoding_resumes(place: Path, tmp_path: Path):
    child = (
        "import os, sys\nfrom microdit.data.latents import writer as encode\nwrite = encode.write_shard\n"
        "def once(*words):\n    if '000001' in words[1]:\n        os.kill(os.getpid(), 9)\n    return write(*words)\n"
        "encode.write_shard = once\nfrom microdit.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    line = f"data encode {place / 'images'} --out {tmp_path} --resolution {SIDE} --shard-size 16 --autoencoder pixels"
    killed = subprocess.run([sys.executable, "-c", child, *line.split()], check=False)
    assert killed.returncode == -9
    assert len(shards(tmp_path)) == 1
    first = shards(tmp_path)[0].stat()
    with pytest.raises(DataError, match=r"is unfinished \(1 shards exist\)"):
        open_images(tmp_path)
    assert encode(place, tmp_path, "--autoencoder", "pixels") == 0
    again = shards(tmp_path)[0].stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert encode(place, tmp_path / "at-once", "--autoencoder", "pixels") == 0
    assert read_index(tmp_path)["fingerprint"] == read_index(tmp_path / "at-once")["fingerprint"]


def test_other_settings_are_rejected_in_an_existing_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = copy_of(place, tmp_path)
    assert encode(place, folder, "--autoencoder", "pixels") == 2
    assert "was begun with latents.shape [16, 8, 8], and now it is [3, 16, 16]" in capsys.readouterr().err
    assert encode(place, folder, "--val-fraction", "0.5") == 2
    assert "source.val_fraction 0.1, and now it is 0.5" in capsys.readouterr().err
    assert read_index(folder) == read_index(place / "done")


# ---- errors ----


def said(config: Config) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        build_components(config)
    return str(caught.value)


def test_a_damaged_shard_is_found_and_written_again(place: Path, tmp_path: Path):
    folder = copy_of(place, tmp_path)
    config, whole = on_latents(folder, tmp_path / "cache"), shards(folder)[1].read_bytes()
    build_components(config)
    shards(folder)[1].write_bytes(whole[:-7])
    assert all(word in said(config) for word in (shards(folder)[1].name, "but its header describes", "delete it"))
    shards(folder)[1].write_bytes(whole[:5])
    assert "truncated (5 bytes)" in said(config)
    shards(folder)[1].write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    assert all(word in said(config) for word in (shards(folder)[1].name, "wrong checksum"))
    shards(folder)[1].unlink()
    assert "1 of 3 shards are missing" in said(config)
    assert encode(place, folder) == 0
    build_components(config)
    assert [path.read_bytes() for path in shards(folder)] == [path.read_bytes() for path in shards(place / "done")]


def test_a_damaged_file_of_captions_is_found(place: Path, tmp_path: Path):
    folder = copy_of(place, tmp_path)
    captions = next(folder.glob("captions-*/*.safetensors"))
    whole = captions.read_bytes()
    captions.write_bytes(whole[:-2] + b"??")
    assert f"{captions}: wrong checksum" in said(on_latents(folder, tmp_path / "cache"))
    captions.unlink()
    assert "captions have no features" in said(on_latents(folder, tmp_path / "cache"))


def test_a_folder_without_a_valid_index_is_rejected(place: Path, tmp_path: Path):
    folder, done = copy_of(place, tmp_path), on_latents(place / "done", tmp_path)

    def at(path: Path) -> Config:
        return dataclasses.replace(done, data=dataclasses.replace(done.data, path=str(path)))

    (folder / "index.json").unlink()
    assert "has no index.json: its encoding is unfinished (3 shards" in said(at(folder))
    assert "made by 'microdit data encode" in said(at(place / "images"))
    with pytest.raises(DataError, match=r"has no index\.json: its encoding is unfinished"):
        on_latents(folder, tmp_path)
    index = read_index(place / "done")
    index["shards"][0]["file"] = "../elsewhere.safetensors"
    (folder / "index.json").write_text(json.dumps(index))
    assert "'../elsewhere.safetensors' is outside the folder" in said(at(folder))
    (folder / "index.json").write_text("{")
    assert "index.json: not valid JSON" in said(at(folder))


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_sizes_follow_the_data_unless_set(place: Path, scale: str):
    words = [f"scale={scale}", "data=latents", f"data.path={place / 'done'}", "text.path=builtin"]
    config = compose_config(words)
    assert (config.data.resolution, config.model.in_channels, config.model.input_size) == (SIDE, 16, 8)
    assert config.autoencoder.path == "data"
    assert compose_config([*words, "model.input_size=4"]).model.input_size == 4


def test_each_mismatch_has_its_own_message(place: Path, tmp_path: Path):
    wrong = said(on_latents(place / "done", tmp_path, "model.in_channels=4", "model.input_size=4"))
    assert "'model.in_channels' is 4, but the autoencoder's number of latent channels is 16" in wrong
    assert f"'model.input_size' is 4, but the side in the latents of {place / 'done'} is 8" in wrong
    wrong = said(on_latents(place / "done", tmp_path, "data.resolution=32"))
    assert "holds 16 x 8 x 8 latents of 16 px images" in wrong
    assert "data.resolution=16 model.in_channels=16 model.input_size=8" in wrong
    wrong = said(on_latents(place / "done", tmp_path, "autoencoder.path=builtin"))
    assert "channels is 16 in the data and 4 here" in wrong
    assert "autoencoder.path=data" in wrong


def test_an_autoencoder_that_changed_or_moved_is_named(place: Path, tmp_path: Path):
    shutil.copytree(place / "vae", tmp_path / "vae")
    assert encode(place, tmp_path / "out", "--autoencoder", str(tmp_path / "vae")) == 0
    settings = (tmp_path / "vae" / "config.json").read_text()
    (tmp_path / "vae" / "config.json").write_text(settings.replace("0.1159", "0.1"))
    assert "shift_factor is 0.1159 in the data and 0.1 here" in said(on_latents(tmp_path / "out", tmp_path))
    (tmp_path / "vae").rename(tmp_path / "moved")
    assert "set autoencoder.path to its present location" in said(on_latents(tmp_path / "out", tmp_path))
    build_components(on_latents(tmp_path / "out", tmp_path, f"autoencoder.path={place / 'vae'}"))


def test_non_finite_latents_name_their_image(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    exact = KLAutoencoder.encode

    def overflowing(self: KLAutoencoder, images: torch.Tensor) -> torch.Tensor:
        z = exact(self, images)
        z[2] *= 1e6  # beyond half precision
        return z

    names = [build_dataset(DataConfig("folder", str(place / "images"), resolution=SIDE), "train")[2].attributes["file"]]
    monkeypatch.setattr(KLAutoencoder, "encode", overflowing)
    assert encode(place, tmp_path) == 2
    assert f"1 images are NaN or beyond half precision, such as {names[0]}" in capsys.readouterr().err


def test_broken_images_are_named_or_skipped(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(place / "images", tmp_path / "images")
    (tmp_path / "images" / "03.png").write_bytes((tmp_path / "images" / "03.png").read_bytes()[:200])
    shutil.copytree(place / "vae", tmp_path / "vae")
    assert encode(tmp_path, tmp_path / "out") == 2
    assert "03.png can't be read" in capsys.readouterr().err
    assert encode(tmp_path, tmp_path / "left-out", "--skip-broken") == 0
    assert "1  images skipped as unreadable, such as 03.png" in capsys.readouterr().out
    assert len(open_images(tmp_path / "left-out")) == COUNT - 1
    (tmp_path / "images" / "03.png").write_bytes(b"")
    assert encode(tmp_path, tmp_path / "none") == 2
    assert "1 images are empty files: 03.png" in capsys.readouterr().err


def test_broken_text_weights_fail_before_images_are_encoded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> None:
        raise ConfigError("no weights")

    monkeypatch.setattr(ClipText, "encode", broken)
    assert encode(place, tmp_path / "out", "--captions") == 2
    assert "no weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
