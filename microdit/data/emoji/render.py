"""Render a scene: drawings composited on a background that varies over y only.

Drawings are resampled to their position with subpixel accuracy and premultiplied alpha. So edges are anti-aliased, and
a scene looks the same at every resolution.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from microdit.data.emoji.art import painted
from microdit.data.emoji.scene import Backdrop, Scene

# Transparent border around the art, in art pixels; resampling reads beyond a drawing's edge.
BORDER = 24


@cache
def aspect(code: str) -> tuple[float, float]:
    """Return the width and height of a drawing's visible part.

    Returns:
        Both as shares of the longer of them.
    """
    left, top, right, bottom = _visible_box(code)
    longest = max(right - left, bottom - top)
    return (right - left) / longest, (bottom - top) / longest


@cache
def _visible_box(code: str) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels that are not transparent, in art pixels."""
    alpha = painted(code, None)[..., 3] > 16
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@cache
def _sprite(code: str, color: str | None, flip: bool) -> Image.Image:
    left, top, right, bottom = _visible_box(code)
    art = painted(code, color)[top:bottom, left:right]
    bordered = np.pad(art[:, ::-1] if flip else art, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)))
    return Image.fromarray(bordered).convert("RGBa")


def render(scene: Scene, resolution: int) -> np.ndarray:
    """Render a scene.

    Args:
        scene: what the image shows.
        resolution: side of the image in pixels.

    Returns:
        (resolution, resolution, 3) uint8 sRGB.
    """
    rows = _backdrop_rows(scene.backdrop, resolution)
    canvas = np.repeat(rows[:, None], resolution, axis=1)  # (H, W, 3) float32
    for thing in scene.things:
        _lay(canvas, _sprite(thing.code, thing.color, thing.flip), thing.box, resolution)
    return (canvas + 0.5).astype(np.uint8)


def _lay(canvas: np.ndarray, sprite: Image.Image, box: tuple[float, float, float, float], resolution: int) -> None:
    x0, y0, x1, y1 = (edge * resolution for edge in box)
    left, top = int(np.floor(x0)), int(np.floor(y0))
    right, bottom = min(int(np.ceil(x1)), resolution), min(int(np.ceil(y1)), resolution)
    per_x = (sprite.width - 2 * BORDER) / (x1 - x0)
    per_y = (sprite.height - 2 * BORDER) / (y1 - y0)
    source = (
        BORDER + (left - x0) * per_x,
        BORDER + (top - y0) * per_y,
        BORDER + (right - x0) * per_x,
        BORDER + (bottom - y0) * per_y,
    )
    patch = np.asarray(sprite.resize((right - left, bottom - top), Image.Resampling.BICUBIC, source), np.float32)
    under = canvas[top:bottom, left:right]
    np.minimum(patch[..., :3] + under * (1 - patch[..., 3:] / 255), 255, out=under)


def _backdrop_rows(backdrop: Backdrop, resolution: int) -> np.ndarray:
    """Return the background's color in each pixel row, (resolution, 3) float32 in [0, 255]."""
    y = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    upper, lower = np.array(backdrop.upper, np.float32), np.array(backdrop.lower, np.float32)
    if backdrop.horizon is None:
        return upper + (lower - upper) * y[:, None]
    # The sky brightens towards the horizon; the edge is one pixel soft.
    ground = np.clip((y - backdrop.horizon) * resolution + 0.5, 0, 1)[:, None]
    sky = upper + (255 - upper) * backdrop.haze * np.minimum(y / backdrop.horizon, 1)[:, None]
    return (sky * (1 - ground) + lower * ground).astype(np.float32)
