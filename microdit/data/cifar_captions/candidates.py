"""Store the rows that passed the filters, and choose among them.

The choice depends on the rows' content and the seed, not on their order: each row has a rank, a hash of the seed and
its content, and of equal rows the one of the lowest rank is kept.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microdit.common.rng import derive_seed

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("label", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("image_phash", pa.string()),
    ]
)
STREAM = "cifar-captions"


class CandidatePool:
    """The candidates of one selection: about 26 bytes per row in memory, their texts in a scratch file.

    URLs and perceptual hashes are compared by 64-bit hashes. The probability that any two of ten million candidates
    collide is about 3e-6.

    Args:
        scratch: the scratch file.
        seed: random seed of the ranks.
        classes: names of the classes.
    """

    def __init__(self, scratch: Path, seed: int, classes: Sequence[str]) -> None:
        self._scratch, self._seed, self._classes = scratch, seed, {name: i for i, name in enumerate(classes)}
        self._writer = pq.ParquetWriter(scratch, SCHEMA, compression="zstd")
        self._urls, self._phashes, self._ranks, self._labels = array("Q"), array("Q"), array("Q"), array("B")

    def __len__(self) -> int:
        return len(self._ranks)

    def add(self, rows: list[dict[str, object]]) -> None:
        """Add candidates, and set the `key` of each.

        Args:
            rows: rows of SCHEMA, without `key`.
        """
        for row in rows:
            key = hashlib.sha256(str(row["url"]).encode()).digest()[:8]
            row["key"] = key.hex()
            self._urls.append(int.from_bytes(key, "big"))
            self._phashes.append(_number(row["image_phash"]))
            # The url has no blank, so different rows have different names.
            self._ranks.append(derive_seed(self._seed, f"{STREAM}/{row['id']} {row['url']} {row['caption']}"))
            self._labels.append(self._classes[str(row["label"])])
        if rows:
            self._writer.write_table(pa.Table.from_pylist(rows, SCHEMA))

    def choose(self, per_class: int | None, balance: bool) -> tuple[pa.Table, dict[str, int]]:
        """Choose rows without duplicates; no rows can be added afterwards.

        Args:
            per_class: maximum number of rows per class; None for no maximum.
            balance: choose as many rows of each class as the smallest class has.

        Returns:
            The chosen rows in the order of their ranks, and how many each rule dropped.
        """
        self._writer.close()
        ranks, labels = np.array(self._ranks), np.array(self._labels)
        order = np.argsort(ranks, kind="stable")
        dropped = Counter[str]()
        for name, values in (("duplicate url", self._urls), ("duplicate image_phash", self._phashes)):
            kept = _first_of_each(np.array(values)[order])
            dropped[name] = len(order) - len(kept)
            order = order[kept]
        limit = per_class
        if balance:
            sizes = np.bincount(labels[order], minlength=len(self._classes))
            limit = min([int(sizes.min()), *([per_class] if per_class is not None else [])])
        if limit is not None:
            kept = np.sort(np.concatenate([np.flatnonzero(labels[order] == i)[:limit] for i in self._classes.values()]))
            dropped["over the class's share"] = len(order) - len(kept)
            order = order[kept]
        return self._read(order), dict(dropped)

    def _read(self, order: np.ndarray) -> pa.Table:
        """Return rows of the scratch file by number, in the given order, without loading the others at once."""
        wanted = np.sort(order)
        parts, start = [], 0
        with pq.ParquetFile(self._scratch) as opened:
            for batch in opened.iter_batches():
                here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(batch))]
                if len(here):
                    parts.append(batch.take(pa.array(here - start)))
                start += len(batch)
        table = pa.Table.from_batches(parts, SCHEMA)
        return table.take(pa.array(np.searchsorted(wanted, order))) if parts else table


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """Return the places of the first of each value, ascending; 0 is an unknown value and equals nothing."""
    _, first = np.unique(values, return_index=True)
    return np.sort(np.concatenate([first[values[first] != 0], np.flatnonzero(values == 0)]))


def _number(phash: object) -> int:
    if phash is None or not str(phash).strip():
        return 0
    return int.from_bytes(hashlib.sha256(str(phash).strip().lower().encode()).digest()[:8], "big")
