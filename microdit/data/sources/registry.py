"""Choose the kind of source from a word on the command line."""

from __future__ import annotations

from pathlib import Path

from microdit.common.errors import DataError
from microdit.common.files.text import read_json_object
from microdit.data.latents.writer import Source
from microdit.data.sources.hf_datasets import HUB, Columns, TableSource, tars
from microdit.data.sources.image_folder import FolderSource

KINDS = (
    "a folder of captioned images, a folder written by datasets' save_to_disk, hf:NAME for the hub, a folder or "
    "glob of webdataset tars, or an MDS folder of the paper's released code"
)


def is_mds(word: str) -> bool:
    """Return whether `word` is a folder in MDS format."""
    try:
        index = read_json_object(Path(word).expanduser() / "index.json")
        return all(shard["format"] == "mds" for shard in index["shards"])
    except (DataError, RuntimeError, ValueError, KeyError, TypeError):
        return False


def open_source(word: str, resolution: int, seed: int, val_fraction: float, columns: Columns) -> Source:
    """Return the source of images that `word` names.

    Args:
        word: one of `KINDS` except MDS folders.
        resolution: side of the images in pixels.
        seed: random seed of the split.
        val_fraction: share of the images held out, if the source doesn't say which.
        columns: names of the columns of tables.

    Raises:
        DataError: if it names none; the message lists the kinds.
    """
    path = Path(word).expanduser()
    saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    if path.is_dir() and any(path.glob("*.tar")):
        word = str(path / "*.tar")
    elif path.is_dir() and not saved:
        return FolderSource(path, resolution, seed, val_fraction)
    if word.startswith(HUB) or saved or (word.endswith(".tar") and tars(word)):
        return TableSource(word, resolution, seed, val_fraction, columns)
    raise DataError(f"'{word}' does not exist; give {KINDS}")
