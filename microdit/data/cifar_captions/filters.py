"""Define the filters that a row of COYO-700M must pass, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from microdit.data.cifar_captions.class_words import ClassPhrases
from microdit.data.cifar_captions.config import Filters

LOWER_BOUNDS = ("min width", "min height", "clip", "aesthetic")
Keep = Callable[[pa.RecordBatch], Any]


@dataclass(frozen=True)
class RowFilter:
    """One filter of rows."""

    name: str  # in the data card
    columns: tuple[str, ...]  # that it reads
    keep: Keep  # batch of n rows -> (n,) booleans


def steps(filters: Filters, words: ClassPhrases) -> list[RowFilter]:
    """Return the active filters in the order in which they are applied.

    Args:
        filters: their bounds.
        words: phrases of which a caption must name one.
    """
    chosen = [
        RowFilter("no url or caption", ("url", "text"), lambda b: pc.and_(_filled(b, "url"), _filled(b, "text"))),
        RowFilter("no class word", ("text",), lambda b: words.mentions(b.column("text"))),
    ]
    if filters.min_words is not None or filters.max_words is not None:
        low, high = filters.min_words or 0, filters.max_words or 1 << 30
        chosen.append(RowFilter("caption length", ("text",), lambda b: _between(_count_words(b), low, high)))
    bounds: tuple[tuple[str, float | None, tuple[str, ...]], ...] = (
        ("min width", filters.min_width, ("width",)),
        ("min height", filters.min_height, ("height",)),
        ("aspect ratio", filters.max_aspect, ("width", "height")),
        ("clip", filters.min_clip, ("clip_similarity_vitb32",)),
        ("watermark", filters.max_watermark, ("watermark_score",)),
        ("aesthetic", filters.min_aesthetic, ("aesthetic_score_laion_v2",)),
        ("nsfw_score_opennsfw2", filters.max_nsfw, ("nsfw_score_opennsfw2",)),
        ("nsfw_score_gantman", filters.max_nsfw, ("nsfw_score_gantman",)),
    )
    for name, bound, columns in bounds:
        if bound is not None:
            compare = pc.greater_equal if name in LOWER_BOUNDS else pc.less_equal
            chosen.append(RowFilter(name, columns, partial(_within, compare, bound, columns)))
    return chosen


def _filled(batch: pa.RecordBatch, column: str) -> Any:
    return pc.match_substring_regex(batch.column(column), r"\S")


def _count_words(batch: pa.RecordBatch) -> Any:
    return pc.count_substring_regex(batch.column("text"), r"\S+")


def _between(values: Any, low: int, high: int) -> Any:
    return pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))


def _aspect(batch: pa.RecordBatch) -> Any:
    """Return longer over shorter side; if a side is 0 it is inf or NaN, which pass no bound."""
    wide = pc.cast(batch.column("width"), pa.float64())
    high = pc.cast(batch.column("height"), pa.float64())
    return pc.divide(
        pc.max_element_wise(wide, high, skip_nulls=False), pc.min_element_wise(wide, high, skip_nulls=False)
    )


def _within(compare: Callable[..., Any], bound: float, columns: tuple[str, ...], batch: pa.RecordBatch) -> Any:
    return compare(_aspect(batch) if len(columns) > 1 else batch.column(columns[0]), bound)
