"""Define the settings of `microdit data cifar-captions`: selection and download."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings

WORDS_FILE = Path(__file__).with_name("class_words.yaml")


def _option(default: Any, text: str) -> Any:
    """Return a field with the text that the command's help shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Filters:
    """Bounds of a selection, inclusive; None turns a filter off.

    A row with a missing or NaN value is dropped.
    """

    min_words: int | None = _option(3, "words of the caption, separated by blanks")
    max_words: int | None = _option(64, "words of the caption, separated by blanks")
    min_width: int | None = _option(256, "pixels, by the metadata")
    min_height: int | None = _option(256, "pixels, by the metadata")
    max_aspect: Annotated[float | None, Range(1)] = _option(
        2.0, "longer over shorter side; images are cropped to the central square"
    )
    min_clip: Annotated[float | None, Range(0, 1)] = _option(0.25, "clip_similarity_vitb32 of image and caption")
    max_watermark: Annotated[float | None, Range(0, 1)] = _option(0.5, "watermark_score")
    min_aesthetic: float | None = _option(4.5, "aesthetic_score_laion_v2, about 1 to 10")
    max_nsfw: Annotated[float | None, Range(0, 1)] = _option(0.5, "nsfw_score_opennsfw2 and nsfw_score_gantman")
    several: Literal["first", "drop"] = "first"
    """`first`: a caption that names several classes is labeled by the first; `drop`: its row is dropped."""

    def __post_init__(self) -> None:
        check_settings("--", self)
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ConfigError(f"--min-words is {self.min_words}, above --max-words {self.max_words}: no caption passes")


@dataclass(frozen=True)
class Request:
    """Everything that determines a selection, besides the metadata itself."""

    coyo: str
    filters: Filters = field(default_factory=Filters)
    words: Path = WORDS_FILE
    seed: int = 0
    per_class: Annotated[int | None, Range(1)] = None
    balance: bool = False
    val_fraction: Annotated[float, Range(above=0, below=1)] = 0.05

    def __post_init__(self) -> None:
        check_settings("--", self)


@dataclass(frozen=True)
class Fetch:
    """Configure how images are downloaded and resized."""

    image_size: Annotated[int, Range(16)] = _option(
        256, "side of the square images in pixels: the shorter side is scaled to it, then the center is cropped"
    )
    min_size: Annotated[int, Range(0)] = _option(256, "smallest accepted length of an image's shorter side, in pixels")
    timeout: Annotated[int, Range(1)] = _option(10, "seconds without an answer after which a url fails")
    retries: Annotated[int, Range(0)] = _option(2, "retries of a failed url")
    processes: Annotated[int, Range(1)] = _option(1, "processes")
    threads: Annotated[int, Range(1)] = _option(32, "simultaneous requests per process")
    shard_size: Annotated[int, Range(1)] = _option(
        1000, "urls per shard; after an interruption unfinished shards start again"
    )

    def __post_init__(self) -> None:
        check_settings("--", self)
