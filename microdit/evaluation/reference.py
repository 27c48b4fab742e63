"""The real pictures that generated ones are compared with, and those that stand in for generated ones."""

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


class Pictures(Dataset[Tensor]):
    """uint8 pictures (N, H, W, 3) as torch-fidelity wants them: a dataset of (3, H, W)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[i])).permute(2, 0, 1)


class RealPictures(Dataset[Tensor]):
    """Some images of a dataset, in the same form; read one by one, so that a large reference needs no memory."""

    def __init__(self, data: CaptionedImages, rows: np.ndarray) -> None:
        self.data = data
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.data[int(self.rows[i])].image)).permute(2, 0, 1)


def reference_rows(size: int, samples: int, reference_count: int) -> tuple[np.ndarray, int]:
    """A dataset's rows in the order in which they are scored against, and how many of the first are the reference."""
    count = min(reference_count, max(size - samples, size // 2))
    return numpy_generator(0, "evaluation-reference").permutation(size), count


def originals_digest(data: CaptionedImages, rows: Iterable[int]) -> str:
    """Digest of files behind these rows that the data's fingerprint doesn't cover; '' if there are none."""
    return data.originals_digest(rows) if isinstance(data, HasOriginals) else ""


class ReferenceSplit:
    """Two disjoint sets of a dataset's images: the reference, and `held`, as many as there are samples.

    The distance of `held` to the reference is the floor: what a perfect generator would get at these counts. Where the
    dataset is too small for both, the reference shrinks, at most to half; then `held` may be smaller than the samples
    and the floor is too high, which is logged. The rows are drawn the same way for every run, seed and arm, and at
    random, because a dataset may come sorted.

    Raises:
        ConfigError: the dataset has fewer than 4 images.
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
                "%d real pictures are too few for a reference of %d and a floor from %d more: the reference has %d and "
                "the floor is measured with %d",
                *(len(data), reference_count, samples, count, len(self.held)),
            )

    def held_items(self) -> list[Sample]:
        """The held pictures with their captions and labels."""
        return [self.data[int(row)] for row in self.held]
