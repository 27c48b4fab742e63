"""Scores for a folder of pictures, whoever drew them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from microdit.data.base import CaptionedImages
from microdit.data.folder_captions import read_captions, some
from microdit.errors import DataError, nearest
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.scores import score

PROMPTS = "prompts.json"


def evaluate_folder(
    path: Path | str, reference: CaptionedImages, config: EvalConfig, cache_dir: Path | str
) -> dict[str, float]:
    """Scores the pictures of a folder as `score` does; `config.samples` is not used: all of them count.

    Captions come from `prompts.json`, {"prompts": [...], "labels": [...] (optional)}, one for each PNG in the order of
    their names; or else, as for the dataset `folder`, from `metadata.jsonl`, `metadata.csv` or sidecar `.txt` files.
    Labels are indices into the reference's classes or their names.

    Raises:
        DataError: a picture, caption or label is missing, broken, or does not fit the reference; names the file.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    if (root / PROMPTS).is_file():
        files, captions, found = _from_prompts(root)
    else:
        entries = read_captions(root)
        files = [entry.file for entry in entries]
        captions = [entry.caption for entry in entries]
        found = [entry.label for entry in entries]
    if not files:
        raise DataError(f"{root} has no pictures")
    labels = [_label(label, reference.classes, root) for label in found]
    images = np.stack([_load(root / file, reference.resolution) for file in files])
    return score(images, captions, labels, reference, config, cache_dir)


def _from_prompts(root: Path) -> tuple[list[str], list[str], list[int | str | None]]:
    source = root / PROMPTS
    try:
        listing = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{source}: not valid JSON: {error}") from None
    captions = listing.get("prompts") if isinstance(listing, dict) else None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{source}: needs the key 'prompts', a list of captions")
    labels = listing.get("labels", [None] * len(captions))
    if not isinstance(labels, list):
        raise DataError(f"{source}: 'labels' must be a list, one for each of the prompts")
    files = sorted(file.name for file in root.glob("*.png"))
    if not len(files) == len(captions) == len(labels):
        raise DataError(
            f"{source}: {len(captions)} prompts and {len(labels)} labels for {len(files)} PNG files "
            f"({some(files)}); one each is needed"
        )
    return files, captions, labels


def _label(label: int | str | None, classes: Sequence[str], root: Path) -> int:
    if label is None:
        return -1
    if isinstance(label, str):
        if label not in classes:
            raise DataError(f"{root}: the label '{label}' is no class of the reference; {nearest(label, classes)}")
        return list(classes).index(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{root}: the label {label!r} is neither an index nor a name of a class")
    return label


def _load(path: Path, side: int) -> np.ndarray:
    """(side, side, 3) uint8; never resized, because that alone changes a distance."""
    try:
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} can't be read: {error}") from error
    if image.shape != (side, side, 3):
        raise DataError(
            f"image {path} is {image.shape[1]} x {image.shape[0]} pixels, the reference {side} x {side}; "
            "generate or resize to that size first"
        )
    return image
