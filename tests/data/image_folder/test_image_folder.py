"""Test users' image folders: both caption conventions, and one clear error per fault."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from microdit.common.errors import ConfigError, DataError
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages
from microdit.data.registry import build_dataset


def draw(path: Path, size: tuple[int, int] = (40, 30), color: tuple[int, ...] = (200, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if len(color) == 3 else "RGBA", size, color).save(path)
    return path


def sidecar_folder(root: Path, count: int = 30) -> Path:
    for k in range(count):
        draw(root / "pictures" / f"{k:02}.png", color=(8 * k, 0, 255 - 8 * k))
        (root / "pictures" / f"{k:02}.txt").write_text(f"picture  number {k}\n", encoding="utf-8")
    return root


def json_folder(root: Path, rows: list[dict[str, Any]], make_images: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for row in rows if make_images else []:
        draw(root / row["file_name"])
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return root


def load(root: Path, split: str = "train", **changes: Any) -> CaptionedImages:
    return build_dataset(DataConfig(name="folder", path=str(root), resolution=16, **changes), split)


def captions(dataset: CaptionedImages) -> list[str]:
    return [dataset[i].caption for i in range(len(dataset))]


# ---- valid folders ----


def test_text_files_beside_the_images(tmp_path: Path) -> None:
    dataset = load(sidecar_folder(tmp_path))
    item = dataset[0]
    assert item.image.shape == (16, 16, 3)
    assert item.image.dtype == np.uint8
    assert item.caption == f"picture number {int(item.attributes['file'][-6:-4])}"
    assert item.label == -1
    assert dataset.classes == ()
    assert isinstance(dataset, CaptionedImages)


def test_train_and_val_share_nothing_and_lose_nothing(tmp_path: Path) -> None:
    root = sidecar_folder(tmp_path)
    train, val = captions(load(root, val_fraction=0.3)), captions(load(root, "val", val_fraction=0.3))
    assert sorted(train + val) == sorted(f"picture number {k}" for k in range(30))
    assert 3 <= len(val) <= 16
    assert len(val) < len(load(root, "val", val_fraction=0.8))
    assert train == captions(load(root, val_fraction=0.3))
    assert val != captions(load(root, "val", val_fraction=0.3, seed=1))


def test_new_images_do_not_change_the_split_of_old_ones(tmp_path: Path) -> None:
    before = set(captions(load(sidecar_folder(tmp_path, 20), "val", val_fraction=0.4)))
    after = set(captions(load(sidecar_folder(tmp_path, 30), "val", val_fraction=0.4)))
    assert before <= after


def test_sizes_limit_a_split(tmp_path: Path) -> None:
    root = sidecar_folder(tmp_path)
    assert captions(load(root, train_size=5)) == captions(load(root))[:5]
    assert len(load(root, "val", val_size=1)) == 1


def test_two_images_are_enough_for_both_splits(tmp_path: Path) -> None:
    root = sidecar_folder(tmp_path, 2)
    assert len(load(root, val_fraction=0.01)) == len(load(root, "val", val_fraction=0.01)) == 1


def test_json_lines_with_names_as_labels(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "text": f"a cat, {k}", "label": ("dog", "cat")[k % 2]} for k in range(12)]
    dataset = load(json_folder(tmp_path, rows))
    assert dataset.classes == ("cat", "dog")
    for i in range(len(dataset)):
        number = int(dataset[i].caption.split()[-1])
        assert dataset.classes[dataset[i].label] == ("dog", "cat")[number % 2]


def test_csv_with_captions_of_commas_and_numbers_as_labels(tmp_path: Path) -> None:
    with open(tmp_path / "metadata.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "caption", "label"])
        for k in range(6):
            draw(tmp_path / "deep" / f"{k}.jpg")
            writer.writerow([f"deep/{k}.jpg", f"größer, {k}", k % 3])
    dataset = load(tmp_path)
    number = int(dataset[0].caption.removeprefix("größer, "))
    assert dataset[0].label == number % 3
    assert dataset.classes == ("0", "1", "2")


def test_several_captions_of_one_image_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k // 2}.png", "text": f"caption {k}"} for k in range(40)]
    root = json_folder(tmp_path, rows)
    files = [
        {dataset[i].attributes["file"] for i in range(len(dataset))}
        for dataset in (load(root, val_fraction=0.4), load(root, "val", val_fraction=0.4))
    ]
    assert not files[0] & files[1]
    assert len(files[0]) + len(files[1]) == 20


def test_the_middle_square_is_kept_and_upright(tmp_path: Path) -> None:
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, 30:60] = (0, 255, 0)
    wide[:10, 30:60] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    for k in range(2):
        Image.fromarray(wide).save(tmp_path / f"{k}.png", exif=exif)
        (tmp_path / f"{k}.txt").write_text("a green thing")
    image = load(tmp_path)[0].image.astype(int)
    assert (image[:8, :, 1] > 200).all()
    assert (image[13:, :, 2] > 200).all()


def test_transparent_gray_and_palette_images_become_rgb(tmp_path: Path) -> None:
    draw(tmp_path / "clear.png", color=(0, 0, 0, 0))
    Image.new("L", (20, 20), 77).save(tmp_path / "gray.png")
    Image.new("P", (20, 20)).save(tmp_path / "palette.gif")
    Image.new("CMYK", (20, 20)).save(tmp_path / "print.jpg")
    for name in ("clear", "gray", "palette", "print"):
        (tmp_path / f"{name}.txt").write_text(name)
    items = [dataset[i] for dataset in (load(tmp_path), load(tmp_path, "val")) for i in range(len(dataset))]
    images = {item.caption: item.image for item in items}
    assert (images["clear"] == 255).all()
    assert (images["gray"] == 77).all()
    assert all(image.shape == (16, 16, 3) for image in images.values())


def test_the_fingerprint_follows_captions_pixels_and_settings(tmp_path: Path) -> None:
    root = sidecar_folder(tmp_path, 6)
    prints = [load(root).fingerprint, load(root, "val").fingerprint, load(root, train_size=2).fingerprint]
    assert load(root).fingerprint == prints[0]
    file = root / load(root)[0].attributes["file"]
    draw(file, color=(1, 2, 3))
    prints.append(load(root).fingerprint)
    file.with_suffix(".txt").write_text("another caption")
    prints.append(load(root).fingerprint)
    assert len(set(prints)) == len(prints)


def test_a_smaller_image_than_asked_for_is_enlarged(tmp_path: Path) -> None:
    for k in range(2):
        draw(tmp_path / f"{k}.png", size=(3, 5))
        (tmp_path / f"{k}.txt").write_text("tiny")
    assert load(tmp_path)[0].image.shape == (16, 16, 3)


# ---- errors ----


def test_missing_captions_are_counted_and_named(tmp_path: Path) -> None:
    sidecar_folder(tmp_path, 9)
    for k in (2, 3, 5, 7, 8):
        (tmp_path / "pictures" / f"{k:02}.txt").unlink()
    (tmp_path / "pictures" / "01.txt").write_text("  \n")
    with pytest.raises(
        DataError, match=r"6 of 9 images have no caption: pictures/01.png, .*02.png, .*03.png and 3 more"
    ):
        load(tmp_path)


def test_images_that_the_metadata_leaves_out(tmp_path: Path) -> None:
    json_folder(tmp_path, [{"file_name": "0.png", "text": "a cat"}])
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"no caption for 1 images of its folder: 1\.png"):
        load(tmp_path)


@pytest.mark.parametrize("caption", ["", "   ", None])
def test_empty_captions_in_the_metadata_name_file_and_line(tmp_path: Path, caption: str | None) -> None:
    json_folder(tmp_path, [{"file_name": "0.png", "text": "a cat"}, {"file_name": "1.png", "text": caption}])
    with pytest.raises(DataError, match=r"1 images have no caption: 1\.png \(line 2\)"):
        load(tmp_path)


def test_images_that_do_not_exist(tmp_path: Path) -> None:
    json_folder(tmp_path, [{"file_name": "gone.png", "text": "a cat"}], make_images=False)
    with pytest.raises(DataError, match=r"1 images that do not exist: gone\.png"):
        load(tmp_path)


def test_empty_files(tmp_path: Path) -> None:
    sidecar_folder(tmp_path, 4)
    (tmp_path / "pictures" / "01.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 images are empty files: pictures/01\.png"):
        load(tmp_path)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    sidecar_folder(tmp_path, 4)
    (tmp_path / "pictures" / "03.png").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"1 files can't be read as images .*: pictures/03\.png"):
        load(tmp_path)


def test_a_truncated_image_names_itself_when_it_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for k in range(2):
        path = tmp_path / f"{k}.png"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:4000])
        path.with_suffix(".txt").write_text("noise")
    dataset = load(tmp_path)
    with pytest.raises(DataError, match=r"\d\.png can't be read"):
        dataset[0]


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/outside.png", "a/../../outside.png", "..\\outside.png", "C:\\x.png"]
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "outside.png")
    json_folder(tmp_path / "in", [{"file_name": name, "text": "a secret"}], make_images=False)
    with pytest.raises(DataError, match=r"line 1: .*is outside the folder"):
        load(tmp_path / "in")


def test_links_to_images_elsewhere_are_fine(tmp_path: Path) -> None:
    target = draw(tmp_path / "store" / "blob.png")
    root = tmp_path / "links"
    root.mkdir()
    for k in range(2):
        (root / f"{k}.png").symlink_to(target)
        (root / f"{k}.txt").write_text("linked")
    assert load(root)[0].caption == "linked"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "1.png", "text": "half', "line 2: not valid JSON"),
        ('["1.png", "a cat"]', "line 2: expected an object"),
        ('{"filename": "1.png", "text": "a cat"}', "line 2: 'file_name' is missing; is it 'filename'"),
        ('{"file_name": "1.png", "texts": "a cat"}', "line 2: 'text' or 'caption' is missing; is it 'texts'"),
        ('{"file_name": 3, "text": "a cat"}', "line 2: 'file_name' is empty or not text"),
        ('{"file_name": "1.png", "text": 7}', "line 2: the caption must be text"),
        ('{"file_name": "1.png", "text": "a cat", "label": 1.5}', "line 2: 'label' must be"),
        ('{"file_name": "1.png", "text": "a cat", "label": -1}', "line 2: 'label' must be"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n' + line + "\n")
    draw(tmp_path / "0.png")
    draw(tmp_path / "1.png")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,text\n0.png,a cat\n", "header: 'file_name' is missing; is it 'file'|it has only"),
        ("file_name,txt\n0.png,a cat\n", "header: 'text' or 'caption' is missing; is it 'txt'"),
        ("file_name,text\n0.png,a cat, on a mat\n", "line 2: not as many fields"),
        ("file_name,text\n0.png\n", "line 2: not as many fields"),
        ('file_name,text\n0.png,"a cat\n', "line 2"),
        ("", "header: 'file_name' is missing"),
        ("file_name,text\n", "names no images"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.csv").write_text(text)
    draw(tmp_path / "0.png")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_captions_that_are_not_utf8(tmp_path: Path) -> None:
    sidecar_folder(tmp_path / "text", 3)
    (tmp_path / "text" / "pictures" / "01.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(DataError, match=r"01\.txt, line 1: not UTF-8"):
        load(tmp_path / "text")
    json_folder(tmp_path / "json", [{"file_name": "0.png", "text": "a cat"}])
    with open(tmp_path / "json" / "metadata.jsonl", "ab") as stream:
        stream.write(b'{"file_name": "0.png", "text": "gr\xf6\xdfer"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2: not UTF-8"):
        load(tmp_path / "json")


def test_two_metadata_files_or_mixed_labels(tmp_path: Path) -> None:
    rows = [{"file_name": "0.png", "text": "a", "label": 1}, {"file_name": "1.png", "text": "b", "label": "dog"}]
    json_folder(tmp_path, rows)
    with pytest.raises(DataError, match="some labels are numbers and some are names"):
        load(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    with pytest.raises(DataError, match="has both"):
        load(tmp_path)


def test_a_missing_folder_images_or_path_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no images"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"needs 'data\.path'"):
        build_dataset(DataConfig(name="folder"), "train")
    with pytest.raises(ConfigError, match="no split 'composition'"):
        load(sidecar_folder(tmp_path), "composition")


def test_a_split_without_images_is_rejected(tmp_path: Path) -> None:
    root = sidecar_folder(tmp_path, 1)
    assert len(load(root)) == 1
    with pytest.raises(DataError, match=r"no image is left for the split 'val': the folder has 1 "):
        load(root, "val")


# ---- splits that the metadata decides ----


def test_the_metadata_may_decide_the_split(tmp_path: Path) -> None:
    rows = [{"file_name": f"{k}.png", "text": f"picture {k}", "split": "val" if k < 4 else "train"} for k in range(12)]
    root = json_folder(tmp_path, rows)
    for fraction in (0.1, 0.9):
        assert sorted(captions(load(root, "val", val_fraction=fraction))) == [f"picture {k}" for k in range(4)]
        assert len(load(root, val_fraction=fraction)) == 8
    (tmp_path / "metadata.jsonl").unlink()
    lines = "".join(f"{k}.png,picture {k},{'val' if k == 7 else 'train'}\n" for k in range(12))
    (tmp_path / "metadata.csv").write_text("file_name,text,split\n" + lines)
    assert captions(load(root, "val")) == ["picture 7"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "vall"], "line 2: 'split' is 'vall'; did you mean 'val'?"),
        (["val", None], "only some images have a 'split': it is missing for 1.png"),
        (["train", "train"], "no image is left for the split 'val': the folder has 2 and its metadata decides"),
    ],
)
def test_a_wrong_split_is_reported(tmp_path: Path, splits: list[str | None], message: str) -> None:
    rows = [{"file_name": f"{k}.png", "text": "one", "split": split} for k, split in enumerate(splits)]
    with pytest.raises(DataError, match=re.escape(message)):
        load(json_folder(tmp_path, rows), "val")


def test_two_captions_of_one_image_in_two_splits_are_rejected(tmp_path: Path) -> None:
    rows = [{"file_name": "0.png", "text": "one", "split": split} for split in ("train", "val")]
    with pytest.raises(DataError, match=r"1 images are in two splits: 0\.png"):
        load(json_folder(tmp_path, rows))
