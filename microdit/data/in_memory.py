"""Provide captioned images that Python code made or loaded, held in memory.

N images, H W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from microdit.common.errors import DataError, shown
from microdit.common.files.text import clean_caption
from microdit.common.rng import hash_to_unit_interval
from microdit.data.dataset import CaptionedImages, Sample
from microdit.data.images.reader import central_square

IN_MEMORY = "in-memory"  # prefix of `data.name` of a run on datasets that Python code passed
MODES = ("RGB", "L")  # of Pillow's images


class ImageCaptionDataset:
    """A dataset of captioned images in memory.

    Args:
        images: N images: an array (N, H, W, 3) uint8, or a sequence of arrays (H, W, 3) and Pillow images (RGB or L).
        captions: N captions.
        labels: N indices into `classes`, -1 if unknown; None: all unknown.
        classes: names of the classes.
        resolution: side in pixels; images are cropped to their central square and resized to it. None: all images are
            squares of one size already.

    Raises:
        DataError: if counts differ, an image has another type or size, or a label is no index into `classes`.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray | Image.Image] | np.ndarray,
        captions: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        resolution: int | None = None,
    ) -> None:
        count = len(images)
        numbers = [-1] * count if labels is None else [int(label) for label in labels]
        if not count or not count == len(captions) == len(numbers):
            raise DataError(
                f"{count} images, {len(captions)} captions and {len(numbers)} labels; give one caption, and if any one "
                "label, for each of at least 1 image"
            )
        arrays = [_to_array(image, i) for i, image in enumerate(images)]
        if resolution is None:
            resolution = len(arrays[0])
            for i, array in enumerate(arrays):
                if array.shape != (resolution, resolution, 3):
                    raise DataError(
                        f"image {i} is {array.shape[0]} x {array.shape[1]} and image 0 is {arrays[0].shape[0]} x "
                        f"{arrays[0].shape[1]}; give 'resolution' to crop and resize all to one square"
                    )
        self.classes = tuple(classes)
        for i, label in enumerate(numbers):
            if not -1 <= label < max(len(self.classes), 1) or (label >= 0 and not self.classes):
                raise DataError(f"label {i} is {label}; with {len(self.classes)} classes it must be -1 or an index")
        self.resolution = resolution
        self._images = [_fit(array, resolution) for array in arrays]
        self._captions = [clean_caption(_text(caption, i), f"caption {i}") for i, caption in enumerate(captions)]
        self._labels = numbers

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of all images, captions, labels and class names."""
        digest = hashlib.sha256(repr((IN_MEMORY, self.resolution, self.classes, len(self))).encode())
        for image, caption, label in zip(self._images, self._captions, self._labels, strict=True):
            digest.update(repr((caption, label)).encode())
            digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of {len(self)}")
        return Sample(self._images[i], self._captions[i], self._labels[i], {})

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[ImageCaptionDataset, ImageCaptionDataset]:
        """Split the images at random, with at least one image in each part.

        Args:
            val_fraction: share of the images to hold out, in (0, 1).
            seed: random seed of the choice.

        Returns:
            The training part and the validation part.

        Raises:
            DataError: if there are fewer than 2 images, or the fraction is out of range.
        """
        if len(self) < 2 or not 0 < val_fraction < 1:
            raise DataError(
                f"{len(self)} images can't be split with val_fraction {val_fraction}; at least 2 images and a fraction "
                "between 0 and 1 are needed"
            )
        order = sorted(range(len(self)), key=lambda i: hash_to_unit_interval(seed, i))
        held_out = min(max(round(val_fraction * len(self)), 1), len(self) - 1)
        return self._part(sorted(order[held_out:])), self._part(sorted(order[:held_out]))

    def _part(self, rows: Sequence[int]) -> ImageCaptionDataset:
        return ImageCaptionDataset(
            [self._images[i] for i in rows],
            [self._captions[i] for i in rows],
            [self._labels[i] for i in rows],
            self.classes,
            self.resolution,
        )


def in_memory_name(train: CaptionedImages, val: CaptionedImages) -> str:
    """Return the `data.name` of a run on two datasets, which identifies their content.

    Args:
        train: the training images.
        val: the held-out images.
    """
    return f"{IN_MEMORY}:{hashlib.sha256(f'{train.fingerprint}/{val.fingerprint}'.encode()).hexdigest()[:16]}"


def check_dataset(data: object, role: str) -> CaptionedImages:
    """Return `data` if its attributes and first item follow the dataset protocol.

    Args:
        data: what a caller passed as a dataset.
        role: the argument's name in messages.

    Raises:
        DataError: if it does not follow the protocol, or is empty.
    """
    if not isinstance(data, CaptionedImages):
        raise DataError(
            f"{role} is {shown(type(data).__name__)}, which lacks part of a dataset: __len__, __getitem__, "
            "fingerprint, classes, resolution; ImageCaptionDataset(images, captions) makes one"
        )
    if not len(data):
        raise DataError(f"{role} has no images")
    item, side = data[0], data.resolution
    if not isinstance(item, Sample) or item.image.dtype != np.uint8 or item.image.shape != (side, side, 3):
        raise DataError(f"{role}[0] must be a Sample with an image of {(side, side, 3)} uint8")
    return data


def _to_array(image: np.ndarray | Image.Image, number: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        if image.mode not in MODES:
            raise DataError(f"image {number} has mode {image.mode}; convert it to RGB first")
        return np.array(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(f"image {number} is {array.dtype} of shape {array.shape}; it must be uint8 of (H, W, 3)")
    return array


def _fit(array: np.ndarray, resolution: int) -> np.ndarray:
    if array.shape == (resolution, resolution, 3):
        return array.copy()
    return central_square(Image.fromarray(array), resolution)


def _text(caption: object, number: int) -> str:
    if not isinstance(caption, str):
        raise DataError(f"caption {number} is {shown(caption)}; it must be text")
    return caption
