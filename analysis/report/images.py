"""Prepare a report's images for its web page: order, captions, and data."""

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
from microdit.common.contract import final_metric
from microdit.common.numbers import estimate

PALETTE_SIZE = 96  # colors of a figure: its own and their blends with the background
WEBP_QUALITY = 82  # of samples
MAX_ARMS_LISTED, MAX_ARMS_WITH_SCORES = 8, 12  # in an alternative text
SAMPLES = "samples"
LAST, UNKNOWN = 99, 98  # ranks on the page
CAPTIONS = {  # by file name, or by its beginning; in the order of the page
    "figure": "Scores over {x}. Large markers are means over seeds, small ones single seeds. Bars are 95% intervals, "
    "clipped at the panel's edge.",
    "cost": "Primary score against the cost of training.",
    "curves": "Training and validation loss by step, one line per arm: mean over its seeds.",
    "loss_by_noise_level": "Final validation loss by diffusion noise level, as a ratio to the baseline's loss.",
    "search": "Search: {rest}.",
    SAMPLES: "Samples of each arm at its first seed, with the same prompts and the same initial noise.",
}


@dataclass(frozen=True)
class ReportImage:
    """An image file with its caption and alternative text.

    Attributes:
        href: link from the page to the image.
        pdf: link from the page to its PDF, or "".
    """

    path: Path
    caption: str
    alt: str
    href: str
    pdf: str = ""

    @property
    def name(self) -> str:
        """Return the file's name without suffix."""
        return self.path.stem

    def size(self, width: int) -> tuple[int, int]:
        """Return the size of the inlined image.

        Args:
            width: the largest width, in pixels.

        Returns:
            Width and height in pixels.
        """
        with Image.open(self.path, formats=["PNG"]) as image:
            return _fit(image.size, width)

    def data(self, width: int) -> str:
        """Return the image as a data: URI.

        Args:
            width: the largest width, in pixels.
        """
        return inline(self.path, width)


def report_images(results: Results, paths: Sequence[Path], base: str = "") -> list[ReportImage]:
    """Return the PNG files of a report in the page's order: samples come last.

    Args:
        results: the study's runs.
        paths: files of the report.
        base: their folder relative to the page.
    """
    found = sorted((path for path in paths if path.suffix == ".png"), key=lambda path: _place(path.stem))
    beside = {path.name for path in paths}
    made = []
    for path in found:
        pdf = f"{path.stem}.pdf"
        words = caption(results, path.stem)
        href = f"{base}{path.name}"
        made.append(
            ReportImage(path, words, _alt(results, path.stem, words), href, f"{base}{pdf}" if pdf in beside else "")
        )
    return made


def caption(results: Results, name: str) -> str:
    """Return the caption of an image.

    Args:
        results: the study's runs.
        name: of the image's file, without suffix.
    """
    key = _key(name)
    rest = name.removeprefix(key).strip("_").replace("_", " ")
    axis = results.study.x
    text = CAPTIONS.get(key, "{rest}.")
    return text.format(x=labels.setting_label(axis) if axis else "the arms", rest=rest or "its trials")


def inline(path: Path, width: int) -> str:
    """Return a PNG file as a data: URI.

    Figures are encoded as PNG with few colors, samples as WebP.

    Args:
        path: the file.
        width: the largest width, in pixels.
    """
    return _encoded(path.read_bytes(), width, path.stem == SAMPLES)


@lru_cache(maxsize=64)
def _encoded(data: bytes, width: int, is_sample: bool) -> str:
    """Encode an image; cached by content, because two pages have it in two folders."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
        image = opened.convert("RGB").resize(_fit(opened.size, width), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if is_sample:
        image.save(stream, "WEBP", quality=WEBP_QUALITY, method=5)
    else:
        # Median cut would spend most colors on the white background and change the color of thin lines.
        few = image.quantize(PALETTE_SIZE, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        few.save(stream, "PNG", optimize=True)
    kind = "webp" if is_sample else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _fit(size: tuple[int, int], width: int) -> tuple[int, int]:
    wide = min(size[0], width)
    return wide, max(1, round(size[1] * wide / size[0]))


def _key(name: str) -> str:
    return name if name in CAPTIONS else next((key for key in CAPTIONS if name.startswith(f"{key}_")), name)


def _place(name: str) -> tuple[int, str]:
    if name == SAMPLES:
        return LAST, name
    known = list(CAPTIONS)
    return (known.index(_key(name)) if _key(name) in known else UNKNOWN), name


def _alt(results: Results, name: str, words: str) -> str:
    """Return the alternative text: numbers of the main figure, else caption and arms."""
    study, arms = results.study, results.arms
    more = f" and {len(arms) - MAX_ARMS_LISTED} more" if len(arms) > MAX_ARMS_LISTED else ""
    shown = ", ".join(arms[:MAX_ARMS_LISTED]) + more
    if name != "figure":
        return f"{words} Arms: {shown}."
    title = results.label(study.primary)
    column = results.frame[final_metric(study.primary)]
    values = [f"{arm} {estimate(column[results.frame['arm'] == arm])}" for arm in arms[:MAX_ARMS_WITH_SCORES]]
    left = len(arms) - MAX_ARMS_WITH_SCORES
    more = f" and {left} more, in the table" if left > 0 else ""
    return (
        f"Scores over {labels.setting_label(study.x) if study.x else 'the arms'}. {title}: {'; '.join(values)}{more}."
    )
