"""Which kind of source a word on the command line names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from microdit.data.encode import Source
from microdit.errors import DataError


@dataclass(frozen=True)
class Wanted:
    """How a source's images are read."""

    resolution: int
    seed: int = 0
    val_fraction: float = 0.1


def open_source(word: str, wanted: Wanted) -> Source:
    """The source that `word` names; raises DataError telling what may stand there."""
    path = Path(word).expanduser()
    if path.is_dir():
        from microdit.data.sources.folder import FolderSource

        return FolderSource(path, wanted.resolution, wanted.seed, wanted.val_fraction)
    raise DataError(f"'{word}' is no folder of captioned images")
