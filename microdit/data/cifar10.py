"""CIFAR-10 as a captioned folder for `data=folder`: its test images are val, its captions are made of templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microdit.errors import ConfigError, DataError
from microdit.files import atomic_path, sweep
from microdit.rng import derive_seed

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NOUNS = {
    "airplane": ("an airplane", "a plane"),
    "automobile": ("an automobile", "a car"),
} | {name: (f"a {name}",) for name in CLASSES[2:]}
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a small photo of {}", "{}, photo")
STREAM = "cifar10/captions"
SPLITS = (("train", True), ("val", False))


def caption(label: str, seed: int, number: int) -> str:
    """A template and a noun, drawn by the image's number over both splits."""
    draw = derive_seed(seed, STREAM, number)
    noun = NOUNS[label][draw // len(TEMPLATES) % len(NOUNS[label])]
    return TEMPLATES[draw % len(TEMPLATES)].format(noun)


def write_cifar10(root: Path, out: Path, seed: int, download: bool) -> dict[str, int]:
    """Writes PNG files and `metadata.jsonl` into the new folder `out`; returns the images of each split.

    Raises ConfigError where `out` holds something already, DataError where CIFAR-10 is not at `root` or is damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already; choose a new folder")
    parts = [(split, _open(root, train, download)) for split, train in SPLITS]
    counts: dict[str, int] = {}
    sweep(out.parent)
    with atomic_path(out) as temporary:
        lines = []
        for entry, image in _entries(parts, seed):
            path = temporary / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            counts[entry["split"]] = counts.get(entry["split"], 0) + 1
            lines.append(json.dumps(entry))
        (temporary / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return counts


def _open(root: Path, train: bool, download: bool) -> Any:
    from torchvision.datasets import CIFAR10

    try:
        return CIFAR10(str(root.expanduser()), train=train, download=download)
    except Exception as error:  # The library raises RuntimeError for what is missing, and urllib's and pickle's own.
        hint = "" if download else " (--download fetches it there; cifar-10-python.tar.gz may lie there already)"
        raise DataError(f"--root {root}: CIFAR-10 can't be opened: {str(error).split(chr(10))[0]}{hint}") from error


def _entries(parts: list[tuple[str, Any]], seed: int) -> Iterator[tuple[dict[str, str], Any]]:
    number = 0
    for split, images in parts:
        if tuple(images.classes) != CLASSES:
            raise DataError(f"{images.root}: its classes are {', '.join(images.classes)}, not CIFAR-10's")
        for image, target in images:
            label = CLASSES[target]
            name = f"{split}/{label}/{number:05}.png"
            yield {"file_name": name, "text": caption(label, seed, number), "label": label, "split": split}, image
            number += 1
