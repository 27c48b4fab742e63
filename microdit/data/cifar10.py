"""Write CIFAR-10 as a captioned folder for `data=folder`.

Test images become the val split. Captions are made from templates.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from microdit.common.errors import ConfigError, DataError
from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.rng import derive_seed

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NOUNS = {
    "airplane": ("an airplane", "a plane"),
    "automobile": ("an automobile", "a car"),
} | {name: (f"a {name}",) for name in CLASSES[2:]}
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a small photo of {}", "{}, photo")
STREAM = "cifar10/captions"
URL = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-10-binary.tar.gz"  # plain bytes; the Python version has pickles
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "val": ("test_batch.bin",)}
SIDE = 32


def _caption(label: str, seed: int, number: int) -> str:
    """Draw a template and a noun for image `number` of both splits."""
    draw = derive_seed(seed, STREAM, number)
    noun = NOUNS[label][draw // len(TEMPLATES) % len(NOUNS[label])]
    return TEMPLATES[draw % len(TEMPLATES)].format(noun)


def write_cifar10(root: Path, out: Path, seed: int, download: bool) -> dict[str, int]:
    """Write PNG files and `metadata.jsonl` into a new folder.

    Args:
        root: folder of the archive `cifar-10-binary.tar.gz`.
        out: folder to create.
        seed: random seed of the captions.
        download: download the archive into `root` first.

    Returns:
        The number of images per split.

    Raises:
        ConfigError: if `out` exists and is not an empty folder.
        DataError: if the archive is missing, can't be downloaded, or is not the published one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists already; choose a new folder")
    path = _open(root, download)
    counts: dict[str, int] = {}
    sweep(out.parent)
    with tarfile.open(path) as archive, atomic_path(out) as temporary:
        lines = []
        for entry, image in _entries(archive, seed):
            path = temporary / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            counts[entry["split"]] = counts.get(entry["split"], 0) + 1
            lines.append(json.dumps(entry))
        (temporary / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def _open(root: Path, download: bool) -> Path:
    """Return the verified archive of CIFAR-10's binary version at `root`."""
    from torchvision.datasets.utils import check_integrity, download_url

    path = root.expanduser() / ARCHIVE
    try:
        if download:
            download_url(f"{URL}/{ARCHIVE}", path.parent, ARCHIVE, ARCHIVE_MD5)
    except Exception as error:  # RuntimeError for other content, and urllib's own errors
        raise DataError(f"--root {root}: {ARCHIVE} can't be downloaded: {str(error).split(chr(10))[0]}") from error
    if not path.is_file():
        raise DataError(f"--root {root}: {ARCHIVE} is missing (--download fetches it)")
    if not check_integrity(path, ARCHIVE_MD5):
        raise DataError(f"{path}: is not the published file (MD5 {ARCHIVE_MD5}); remove it and use --download")
    return path


def _entries(archive: tarfile.TarFile, seed: int) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Yield metadata and image of each row: a label byte, then planes of red, green and blue, 32 x 32 each."""
    number = 0
    for split, file in ((split, file) for split, files in FILES.items() for file in files):
        member = archive.extractfile(f"{FOLDER}/{file}")
        assert member is not None
        for row in np.frombuffer(member.read(), np.uint8).reshape(-1, 1 + 3 * SIDE * SIDE):
            label = CLASSES[row[0]]
            name = f"{split}/{label}/{number:05}.png"
            entry = {"file_name": name, "text": _caption(label, seed, number), "label": label, "split": split}
            yield entry, Image.fromarray(row[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0))
            number += 1
