"""A report's pictures for its web page: in a sensible order, captioned, described in words, small enough to inline."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from analysis import labels
from analysis.io.results import Results
from analysis.stats.intervals import estimate

PALETTE_SIZE = 96  # of a drawing: its own few, and their blends into the ground
QUALITY = 82  # of photographs as WebP
SAMPLES = "samples"
CAPTIONS = {  # by the file's name, or by how it begins; in the order of the page
    "figure": "Scores over {x}. Large marks are means over the seeds, small ones the seeds; bars are 95% intervals, "
    "cut where they leave the panel.",
    "cost": "What the scores cost.",
    "curves": "Training and validation loss by step, an arm a line: thick for the mean over its seeds.",
    "noise": "Noise of the scores: between seeds, and between evaluations of the same weights.",
    "search": "The search: {rest}.",
    SAMPLES: "What the arms draw: the same prompts and noise for every arm, of its first seed.",
}


@dataclass(frozen=True)
class Picture:
    """A picture file with what a page says of it; `href` leads to it from the page, `pdf` to the same for print."""

    path: Path
    caption: str
    alt: str
    href: str
    pdf: str = ""

    @property
    def name(self) -> str:
        return self.path.stem

    def size(self, width: int) -> tuple[int, int]:
        """Width and height of the inlined picture."""
        with Image.open(self.path, formats=["PNG"]) as picture:
            return _fit(picture.size, width)

    def data(self, width: int) -> str:
        """The picture as a data: URI, at most `width` pixels wide."""
        return inline(self.path, width)


def pictures(results: Results, paths: Sequence[Path], base: str = "") -> list[Picture]:
    """The PNG files of a report in the page's order, unknown ones after the known; samples last."""
    found = sorted((path for path in paths if path.suffix == ".png"), key=lambda path: _place(path.stem))
    beside = {path.name for path in paths}
    made = []
    for path in found:
        pdf = f"{path.stem}.pdf"
        words = caption(results, path.stem)
        href = f"{base}{path.name}"
        made.append(
            Picture(path, words, _alt(results, path.stem, words), href, f"{base}{pdf}" if pdf in beside else "")
        )
    return made


def caption(results: Results, name: str) -> str:
    """What is drawn in the picture `name`."""
    key = _key(name)
    rest = name.removeprefix(key).strip("_").replace("_", " ")
    axis = results.study.x
    text = CAPTIONS.get(key, "{rest}.")
    return text.format(x=labels.setting_label(axis) if axis else "the arms", rest=rest or "its trials")


def inline(path: Path, width: int) -> str:
    """A PNG file as a data: URI: drawings as PNG of few colours, samples as WebP."""
    return _encoded(path.read_bytes(), width, path.stem == SAMPLES)


@lru_cache(maxsize=64)
def _encoded(data: bytes, width: int, photograph: bool) -> str:
    """By contents: a study's own page and the page of all studies show the same pictures from different places."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
        picture = opened.convert("RGB").resize(_fit(opened.size, width), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if photograph:
        picture.save(stream, "WEBP", quality=QUALITY, method=5)
    else:
        # Median cut gives a page of white most of the colours, and thin lines whatever is left: another colour.
        few = picture.quantize(PALETTE_SIZE, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        few.save(stream, "PNG", optimize=True)
    kind = "webp" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _fit(size: tuple[int, int], width: int) -> tuple[int, int]:
    wide = min(size[0], width)
    return wide, max(1, round(size[1] * wide / size[0]))


def _key(name: str) -> str:
    return name if name in CAPTIONS else next((key for key in CAPTIONS if name.startswith(f"{key}_")), name)


def _place(name: str) -> tuple[int, str]:
    if name == SAMPLES:
        return 99, name
    known = list(CAPTIONS)
    return (known.index(_key(name)) if _key(name) in known else 98), name


def _alt(results: Results, name: str, words: str) -> str:
    """The picture in words, for who can't see it: the figure's numbers, the arms of the others."""
    study, arms = results.study, results.arms
    shown = ", ".join(arms[:8]) + (f" and {len(arms) - 8} more" if len(arms) > 8 else "")
    if name != "figure":
        return f"{words} Arms: {shown}."
    title = labels.metric_label(study.primary, results.tag("feature_net"))
    column = results.frame[f"final/{study.primary}"]
    values = [f"{arm} {estimate(column[results.frame['arm'] == arm])}" for arm in arms[:12]]
    more = f" and {len(arms) - 12} more, in the table" if len(arms) > 12 else ""
    return (
        f"Scores over {labels.setting_label(study.x) if study.x else 'the arms'}. {title}: {'; '.join(values)}{more}."
    )
