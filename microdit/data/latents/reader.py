"""Read folders of encoded images: memory-mapped shards of latents, captions and labels, and an index.

`index.json` is written last, when all shards are complete: a folder without one is unfinished. N images, B batch, C
channels, s latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microdit.common.errors import DataError, shown
from microdit.common.files.verified import find_damaged, read_verified
from microdit.data.latents.shards import REMEDY, ConcatArray, Shard, check_digest, open_shard, unpack

FORMAT = "microdit-latents-1"
INDEX, HEADER = "index.json", "header.json"
SPLITS = ("train", "val")
REQUIRED_KEYS = ("resolution", "classes", "latents", "autoencoder", "statistics", "fingerprint")


@dataclass(frozen=True)
class EncodedImages:
    """The encoded images of one split."""

    index: Mapping[str, Any]
    rows: np.ndarray  # (N,) int64: the split's rows in the folder
    latents: ConcatArray
    labels: np.ndarray  # (N,) int64, -1 if unknown
    digests: np.ndarray  # (N,) uint64 of the captions
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all latents.

        Returns:
            (N, C, s, s).
        """
        return (len(self), *self.latents.shape[1:])

    def take(self, images: np.ndarray) -> np.ndarray:
        """Read the latents of some images.

        Args:
            images: (B,) int, indices from 0 to N - 1.

        Returns:
            (B, C, s, s) float16.
        """
        return self.latents.take(self.rows[images])

    def caption(self, image: int) -> str:
        """Return the caption of an image.

        Args:
            image: index from 0 to N - 1.
        """
        return self._word(image, "captions")

    def key(self, image: int) -> str:
        """Return an image's name in its source, such as its file name.

        Args:
            image: index from 0 to N - 1.
        """
        return self._word(image, "keys")

    def _word(self, image: int, what: str) -> str:
        part, place = self.latents.place(int(self.rows[image]))
        return unpack(self.shards[part][what], self.shards[part][f"{what}_ends"], place)

    def sigma_data(self, split: str | None) -> float:
        """Return the standard deviation of all latent values of a split.

        Args:
            split: None for the images of all splits.
        """
        return sigma_of(self.index["statistics"], split)


def sigma_of(statistics: Mapping[str, Mapping[str, float]], split: str | None) -> float:
    """Return the standard deviation of latent values, 1.0 if there are none.

    Args:
        statistics: `values` (their count), `sum` and `squares` (sum of squares) of each split.
        split: None for all splits.
    """
    chosen = [statistics[split]] if split else list(statistics.values())
    count, total, squares = (sum(one[what] for one in chosen) for what in ("values", "sum", "squares"))
    return float(np.sqrt(max(squares / count - (total / count) ** 2, 0.0))) if count else 1.0


def read_index(folder: Path) -> dict[str, Any]:
    """Return the verified index of a folder.

    Raises:
        DataError: if the folder is missing, unfinished, damaged, or of another format.
    """
    path = folder / INDEX
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not path.is_file():
        begun = len(list(folder.glob("[0-9]*.safetensors")))
        if (folder / HEADER).is_file():
            raise DataError(
                f"{folder} has no {INDEX}: its encoding is unfinished ({begun} shards exist); repeat the "
                "'microdit data encode' command to resume it"
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
    absent = [key for key in REQUIRED_KEYS if key not in index]
    if absent:
        raise DataError(f"{path}: '{absent[0]}' is missing; {REMEDY}")
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name or "\0" in name]
    if outside:
        raise DataError(f"{path}: {shown(outside[0])} is outside the folder")
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
    """Return the settings that an index determines, by dotted keys.

    Args:
        index: the content of `index.json`.
    """
    channels, side, _ = index["latents"]["shape"]
    return {"data.resolution": int(index["resolution"]), "model.in_channels": channels, "model.input_size": side}


def settings_from_latents(path: str) -> dict[str, int]:
    """Return the settings that follow from encoded images, by dotted keys.

    These are resolution (pixels), latent channels and latent size.

    Raises:
        DataError: if the folder is missing or unfinished.
    """
    return settings_of(read_index(Path(path).expanduser()))


def to_overrides(settings: Mapping[str, int]) -> str:
    """Return settings as command-line words "KEY=VALUE ...".

    Args:
        settings: values by dotted keys.
    """
    return " ".join(f"{key}={value}" for key, value in settings.items())


def open_images(folder: Path, split: str | None = None, limit: int | None = None) -> EncodedImages:
    """Map the shards of a finished folder.

    Args:
        folder: the folder of encoded images.
        split: "train" or "val"; None for all images.
        limit: maximum number of images; the first of the split are used.

    Returns:
        The images; their latents are read when they are used.

    Raises:
        DataError: if the index or a shard is missing, truncated or inconsistent.
    """
    index = read_index(folder)
    absent = [entry["file"] for entry in index["shards"] if not (folder / entry["file"]).is_file()]
    if absent:
        raise DataError(
            f"{folder}: {len(absent)} of {len(index['shards'])} shards are missing, such as {absent[0]}; repeat the "
            "'microdit data encode' command to make them again"
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
        raise DataError(f"{path}: its latents are {found}, but {path.parent / INDEX} has {expected}; {REMEDY}")
    for name in ("labels", "held_out", "digests"):
        if shard[name].shape != found[:1]:
            raise DataError(f"{path}: its {name} are {shard[name].shape}, not {found[:1]}; {REMEDY}")
    return shard


def check_all(files: list[Path], memory: Path) -> None:
    """Verify the checksums of files.

    Args:
        files: shards whose names end in their digests.
        memory: folder that records verified files.

    Raises:
        DataError: if a file was changed.
    """
    bad = find_damaged(files, check_digest, memory)
    if bad:
        raise DataError(bad[0][1])
