"""Score a folder of images from any source."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from microdit.common.errors import DataError, nearest
from microdit.data.dataset import CaptionedImages
from microdit.data.image_folder.metadata import METADATA, images_of, read_captions
from microdit.data.image_folder.prompt_pairing import read_prompted
from microdit.data.images.reader import central_square, read_image
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.score import score

PROMPTS = "prompts.json"

log = logging.getLogger(__name__)


def evaluate_folder(
    path: Path | str, reference: CaptionedImages, config: EvalConfig, cache_dir: Path | str
) -> dict[str, float]:
    """Score all images of a folder as `score` does, whatever `config.samples` is.

    Captions come from `prompts.json` (`read_prompted` lists its forms) or, as for the dataset `folder`, from
    `metadata.jsonl`, `metadata.csv` or `.txt` files. Labels are indices into the reference's classes or their names.
    Images are read, cropped and resized as the dataset's are. A warning gives the number of resized images, because
    resizing alone changes a distance.

    Args:
        path: the folder.
        reference: real images.
        config: metrics and networks.
        cache_dir: where features of real images are stored.

    Returns:
        As `score`.

    Raises:
        DataError: if an image, caption or label is missing, broken, or does not fit the reference.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    if (root / PROMPTS).is_file():
        beside = [name for name in METADATA if (root / name).is_file()]
        if beside:
            raise DataError(f"{root} has both {PROMPTS} and {beside[0]}: keep one of them")
        prompted = read_prompted(root / PROMPTS, images_of(root))
        files = [entry.file for entry in prompted]
        captions = [entry.prompt for entry in prompted]
        found = [entry.label for entry in prompted]
    else:
        entries = read_captions(root)
        files = [entry.file for entry in entries]
        captions = [entry.caption for entry in entries]
        found = [entry.label for entry in entries]
    if not files:
        raise DataError(f"{root} has no images")
    labels = [_label(label, reference.classes, root) for label in found]
    images = _load(root, files, reference.resolution)
    return score(images, captions, labels, reference, config, cache_dir)


def _label(label: int | str | None, classes: Sequence[str], root: Path) -> int:
    if label is None:
        return -1
    if isinstance(label, str):
        if label not in classes:
            raise DataError(f"{root}: the label '{label}' is not a class of the reference; {nearest(label, classes)}")
        return list(classes).index(label)
    if isinstance(label, bool) or not isinstance(label, int):
        raise DataError(f"{root}: the label {label!r} is neither an index nor a name of a class")
    if classes and label >= len(classes):
        raise DataError(f"{root}: the label {label} is beyond the reference's classes, 0 to {len(classes) - 1}")
    return label


def _load(root: Path, files: Sequence[str], side: int) -> np.ndarray:
    """Return central squares (N, side, side, 3) uint8, resampled if their size differs."""
    squares, resized = [], 0
    for file in files:
        image = read_image(root / file)
        resized += image.size != (side, side)
        squares.append(central_square(image, side))
    if resized:
        log.warning(
            "%s: the central squares of %d of %d images were resized to %d x %d, the reference's size; resizing alone "
            "changes a distance",
            *(root, resized, len(files), side, side),
        )
    return np.stack(squares)
