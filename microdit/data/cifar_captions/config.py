"""The settings of one `cifar-captions` build: what is chosen, and how it is fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microdit.common.errors import ConfigError, nearest

SEVERAL = ("first", "drop")
WORDS_FILE = Path(__file__).with_name("class_words.yaml")


def option(default: Any, text: str) -> Any:
    """A setting with the line that the command's help shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Filters:
    """Bounds of one selection, all inclusive; None leaves a filter out. A missing or NaN value fails its bound."""

    min_words: int | None = option(3, "words of the caption, as blanks part them")
    max_words: int | None = option(64, "words of the caption, as blanks part them")
    min_width: int | None = option(256, "pixels, by the metadata")
    min_height: int | None = option(256, "pixels, by the metadata")
    max_aspect: float | None = option(2.0, "longer over shorter side; outside the central square pictures are cut")
    min_clip: float | None = option(0.25, "clip_similarity_vitb32 of image and caption")
    max_watermark: float | None = option(0.5, "watermark_score")
    min_aesthetic: float | None = option(4.5, "aesthetic_score_laion_v2, about 1 to 10")
    max_nsfw: float | None = option(0.5, "nsfw_score_opennsfw2 and nsfw_score_gantman")
    several: str = "first"
    """A caption that names several classes is labelled by the one it names `first`, or the row is dropped (`drop`)."""

    def __post_init__(self) -> None:
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ConfigError(f"--min-words is {self.min_words}, above --max-words {self.max_words}: no caption passes")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ConfigError(f"--max-aspect is {self.max_aspect}; longer over shorter side is never below 1")
        for name in ("max_watermark", "max_nsfw", "min_clip"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must lie between 0 and 1")
        if self.several not in SEVERAL:
            raise ConfigError(f"--several is '{self.several}'; {nearest(self.several, SEVERAL)}")


@dataclass(frozen=True)
class Request:
    """All that determines a selection, besides the metadata itself."""

    coyo: str
    filters: Filters = field(default_factory=Filters)
    words: Path = WORDS_FILE
    seed: int = 0
    per_class: int | None = None
    balance: bool = False
    val_fraction: float = 0.05

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < 1:
            raise ConfigError(f"--per-class is {self.per_class}; it must be at least 1")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction is {self.val_fraction}; it must lie between 0 and 1")


@dataclass(frozen=True)
class Fetch:
    """How images are fetched and what becomes of them."""

    image_size: int = option(256, "side of the square images: the shorter side is scaled to it, the middle kept")
    min_size: int = option(256, "pictures that turn out to have a shorter side are refused, in pixels")
    timeout: int = option(10, "seconds without an answer after which a url has failed")
    retries: int = option(2, "times that a failed url is tried again")
    processes: int = option(1, "processes")
    threads: int = option(32, "simultaneous requests of a process")
    shard_size: int = option(1000, "urls that are fetched as one; after an interruption the unfinished ones start anew")

    def __post_init__(self) -> None:
        least = {"image_size": 16, "min_size": 0, "retries": 0}
        for name in self.__dataclass_fields__:
            if getattr(self, name) < least.get(name, 1):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} is {getattr(self, name)}; it must be at least {least.get(name, 1)}")
