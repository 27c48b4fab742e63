"""Hold prompts: captions with their classes and features, read batch by batch.

N captions, S text tokens, Y token width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from microdit.data.latents.training_data import EncodedDataset
from microdit.encoders.text import TextEncoder
from microdit.model.conditioning import Captions, round_to_half


@dataclass(frozen=True)
class Features:
    """Caption features, read in batches.

    At the paper's size, all of them exceed the memory.
    """

    rows: range
    read: Callable[[range], Captions]  # some of the rows -> (B, S, Y) float32

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Captions:
        return self.read(self.rows[part])

    def part(self, first: int, stop: int) -> Features:
        """Return the features of some rows, unread.

        Args:
            first: the first row.
            stop: the row after the last.
        """
        return Features(self.rows[first:stop], self.read)


@dataclass(frozen=True)
class Prompts:
    """Captions to draw, with their features and classes (-1: unknown)."""

    features: Features
    captions: tuple[str, ...]
    labels: tuple[int, ...]


def held_out_prompts(data: EncodedDataset, indices: Sequence[int]) -> Prompts:
    """Return the captions of some images of an encoded dataset.

    Args:
        data: the dataset.
        indices: numbers of the images.
    """
    rows = np.array(indices, np.int64)
    features = Features(range(len(rows)), lambda part: data.batch(rows[part.start : part.stop])[1])
    return Prompts(features, tuple(data.caption(i) for i in indices), tuple(int(data.labels[i]) for i in indices))


def shown_prompts(data: EncodedDataset, count: int) -> Prompts:
    """Return captions for sample images, of each class in turn.

    They are the same for every run on this data.

    Args:
        data: the dataset.
        count: number of captions; all if the dataset has fewer.
    """
    by_class = {label: list(np.flatnonzero(data.labels == label)) for label in sorted(set(data.labels.tolist()))}
    indices: list[int] = []
    while len(indices) < min(count, len(data)):
        for rows in by_class.values():
            if rows and len(indices) < count:
                indices.append(int(rows.pop(0)))
    return held_out_prompts(data, indices)


def written_prompts(captions: Sequence[str], encoder: TextEncoder) -> Prompts:
    """Return captions without classes.

    Their features are rounded to half precision, as those of a dataset are.

    Args:
        captions: the captions.
        encoder: encodes them when they are read.
    """

    def read(part: range) -> Captions:
        return round_to_half(encoder.encode(captions[part.start : part.stop]))

    return Prompts(Features(range(len(captions)), read), tuple(captions), (-1,) * len(captions))
