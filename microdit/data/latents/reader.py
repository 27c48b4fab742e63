"""A folder of encoded images: latents, captions and labels in memory-mapped shards, and an index of them.

`index.json` is written last, once all shards are there: a folder without one isn't done. N images, C channels, s side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microdit.common.errors import DataError, shown
from microdit.common.files.verified import damaged, read_verified
from microdit.data.latents.shards import REMEDY, ConcatArray, Shard, check_digest, open_shard, unpack

FORMAT = "microdit-latents-1"
INDEX, HEADER = "index.json", "header.json"
SPLITS = ("train", "val")
KEYS = ("resolution", "classes", "latents", "autoencoder", "statistics", "fingerprint")


@dataclass(frozen=True)
class EncodedImages:
    """The images of one split, as the network sees them."""

    index: Mapping[str, Any]
    rows: np.ndarray  # (N,) int64: the split's places in the folder
    latents: ConcatArray
    labels: np.ndarray  # (N,) int64, -1 where unknown
    digests: np.ndarray  # (N,) uint64 of the captions
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, s, s)."""
        return (len(self), *self.latents.shape[1:])

    def take(self, images: np.ndarray) -> np.ndarray:
        """Latents (B, C, s, s) float16."""
        return self.latents.take(self.rows[images])

    def caption(self, image: int) -> str:
        """The caption of an image."""
        return self._word(image, "captions")

    def key(self, image: int) -> str:
        """What its source calls an image: the file's name, say."""
        return self._word(image, "keys")

    def _word(self, image: int, what: str) -> str:
        part, place = self.latents.place(int(self.rows[image]))
        return unpack(self.shards[part][what], self.shards[part][f"{what}_ends"], place)

    def sigma_data(self, split: str | None) -> float:
        """Standard deviation over all latent values of a split, or of all images; measured in float64."""
        return sigma_of(self.index["statistics"], split)


def sigma_of(statistics: Mapping[str, Mapping[str, float]], split: str | None) -> float:
    """From counts, sums and sums of squares of each split."""
    chosen = [statistics[split]] if split else list(statistics.values())
    count, total, squares = (sum(one[what] for one in chosen) for what in ("values", "sum", "squares"))
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 1.0


def read_index(folder: Path) -> dict[str, Any]:
    """What the index says. Raises DataError telling whether encoding isn't finished or the folder is another kind."""
    path = folder / INDEX
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not path.is_file():
        begun = len(list(folder.glob("[0-9]*.safetensors")))
        if (folder / HEADER).is_file():
            raise DataError(
                f"{folder} has no {INDEX}: its encoding isn't finished ({begun} shards are there); give the same "
                "'microdit data encode' again, and it goes on"
            )
        raise DataError(f"{folder} has no {INDEX}; encoded images are made by 'microdit data encode SOURCE --out DIR'")
    try:
        index = read_verified(path)
        kind = index["format"]
        names = [entry["file"] for entry in index["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({shown(error)}); {REMEDY}") from None
    if kind != FORMAT:
        raise DataError(f"{path}: its format is {kind!r}, not '{FORMAT}'")
    absent = [key for key in KEYS if key not in index]
    if absent:
        raise DataError(f"{path}: '{absent[0]}' is missing; {REMEDY}")
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name or "\0" in name]
    if outside:
        raise DataError(f"{path}: {shown(outside[0])} leads out of the folder")
    fault = _fault_of(index)
    if fault:
        raise DataError(f"{path}: {fault}; {REMEDY}")
    return index


def _fault_of(index: Mapping[str, Any]) -> str:
    """Return what is wrong with the values of an index; "" if nothing is."""
    latents, statistics = index["latents"], index["statistics"]
    shape = latents.get("shape") if isinstance(latents, dict) else None
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_count(n) and n > 0 for n in shape):
        return f"'latents.shape' is {shown(shape)}, not three sizes"
    if not _is_count(index["resolution"]):
        return f"'resolution' is {shown(index['resolution'])}, not a whole number"
    if not isinstance(index["classes"], list) or not all(isinstance(name, str) for name in index["classes"]):
        return "'classes' must be a list of names"
    if not isinstance(index["fingerprint"], str) or not isinstance(index["autoencoder"], dict):
        return "'fingerprint' must be text and 'autoencoder' an object"
    if not isinstance(statistics, dict) or not all(isinstance(one, dict) for one in statistics.values()):
        return "'statistics' must be an object of objects"
    if not isinstance(index["shards"], list) or not index["shards"]:
        return f"'shards' is {shown(index['shards'])}, not a list of at least one"
    wrong = [entry for entry in index["shards"] if not _is_count(entry.get("count"))]
    return f"the shard {shown(wrong[0])} has no count" if wrong else ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def settings_of(index: Mapping[str, Any]) -> dict[str, int]:
    """The settings that an index decides, by dotted keys."""
    channels, side, _ = index["latents"]["shape"]
    return {"data.resolution": int(index["resolution"]), "model.in_channels": channels, "model.input_size": side}


def to_overrides(settings: Mapping[str, int]) -> str:
    """As they are typed."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


def open_images(folder: Path, split: str | None = None, limit: int | None = None) -> EncodedImages:
    """Maps the shards of a finished folder: of all images or of a split, its first `limit` if given.

    Raises DataError where the index or a shard is missing, truncated, or doesn't fit.
    """
    index = read_index(folder)
    absent = [entry["file"] for entry in index["shards"] if not (folder / entry["file"]).is_file()]
    if absent:
        raise DataError(
            f"{folder}: {len(absent)} of {len(index['shards'])} shards are missing, such as {absent[0]}; give the same "
            "'microdit data encode' again, and it makes them anew"
        )
    shards = tuple(_opened(folder / entry["file"], entry, index) for entry in index["shards"])
    held_out = np.concatenate([shard["held_out"] for shard in shards])
    every = np.arange(len(held_out)) if split is None else np.flatnonzero(held_out == (split == "val"))
    rows = every[:limit]
    return EncodedImages(
        index,
        rows,
        ConcatArray([shard["latents"] for shard in shards]),
        np.concatenate([shard["labels"] for shard in shards])[rows],
        np.concatenate([shard["digests"] for shard in shards])[rows],
        shards,
    )


def _opened(path: Path, entry: Mapping[str, Any], index: Mapping[str, Any]) -> Shard:
    shard = open_shard(path)
    found, expected = shard["latents"].shape, (entry["count"], *index["latents"]["shape"])
    if found != expected:
        raise DataError(f"{path}: its latents are {found}, but {path.parent / INDEX} says {expected}; {REMEDY}")
    for name in ("labels", "held_out", "digests"):
        if shard[name].shape != found[:1]:
            raise DataError(f"{path}: its {name} are {shard[name].shape}, not {found[:1]}; {REMEDY}")
    return shard


def check_all(files: list[Path], memory: Path) -> None:
    """Reads all files and compares their checksums, once: `memory` keeps what was found good as it stands.

    Raises DataError naming the file that was changed.
    """
    bad = damaged(files, check_digest, memory)
    if bad:
        raise DataError(bad[0][1])
