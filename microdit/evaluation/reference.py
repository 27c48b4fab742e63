"""Select the real images that samples are compared with, and others for the floor."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from microdit.common.errors import ConfigError
from microdit.common.rng import numpy_generator
from microdit.data.dataset import CaptionedImages, HasOriginals, Sample

log = logging.getLogger(__name__)


class SampledImages(Dataset[Tensor]):
    """Wrap samples (N, H, W, 3) uint8 as a dataset of (3, H, W) for torch-fidelity."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[i])).permute(2, 0, 1)


class RealImages(Dataset[Tensor]):
    """Wrap some images of a dataset for torch-fidelity.

    They are read one by one, so a large reference needs little memory.
    """

    def __init__(self, data: CaptionedImages, rows: np.ndarray) -> None:
        self.data = data
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.data[int(self.rows[i])].image)).permute(2, 0, 1)


def reference_rows(size: int, samples: int, reference_count: int) -> tuple[np.ndarray, int]:
    """Return a dataset's rows in scoring order, the reference first.

    Args:
        size: images of the dataset.
        samples: images that the floor needs besides the reference.
        reference_count: wanted size of the reference.

    Returns:
        A permutation (size,) of all rows, and the number of its first rows that are the reference.
    """
    count = min(reference_count, max(size - samples, size // 2))
    return numpy_generator(0, "evaluation-reference").permutation(size), count


def originals_digest(data: CaptionedImages, rows: Iterable[int]) -> str:
    """Return a digest of the original files of some rows, "" if there are none.

    The data's fingerprint does not cover originals.

    Args:
        data: the dataset.
        rows: indices into `data`.
    """
    return data.originals_digest(rows) if isinstance(data, HasOriginals) else ""


class ReferenceSplit:
    """Split a dataset into the reference and `held`, as many images as samples.

    The distance of `held` to the reference is the floor, the score of a perfect generator at these counts. If the
    dataset is too small for both, the reference shrinks, at most to half. If `held` is then smaller than the samples,
    the floor is too high, which is logged. Rows are drawn at random, because a dataset may be sorted, but equally for
    every run, seed and arm.

    Args:
        data: real images.
        samples: number of images to score.
        reference_count: wanted size of the reference.

    Raises:
        ConfigError: if the dataset has fewer than 4 images.
    """

    def __init__(self, data: CaptionedImages, samples: int, reference_count: int) -> None:
        if len(data) < 4:
            raise ConfigError(
                f"'evaluation.reference_split' has {len(data)} images; at least 4 are needed to score against"
            )
        rows, count = reference_rows(len(data), samples, reference_count)
        self.data = data
        self.reference = rows[:count]
        self.held = rows[count : count + samples]
        originals = originals_digest(data, [*self.reference, *self.held])[:12]
        self.name = f"{data.fingerprint[:20]}-{count}" + (f"-{originals}" if originals else "")
        if count < reference_count or len(self.held) < samples:
            log.warning(
                "%d real images are too few for a reference of %d and a floor from %d more: the reference has %d and "
                "the floor is measured with %d",
                *(len(data), reference_count, samples, count, len(self.held)),
            )

    def held_items(self) -> list[Sample]:
        """Return the held images with their captions and labels."""
        return [self.data[int(row)] for row in self.held]
