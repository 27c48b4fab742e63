"""Read image files as correct sRGB pixels, or reject them by name.

The project's only image decoder.

The rule:
- BMP, GIF, JPEG, PNG, TIFF and WebP are opened, whatever the file's suffix; nothing else is.
- Of several frames or pages the first is used.
- Pixels are rotated by the EXIF orientation, converted to sRGB by the embedded ICC profile (or PNG's gamma), and
  composited on white if transparent.
- 16-bit gray is scaled to 8 bits. CMYK without a profile is converted by (255 - C)(255 - K) / 255.
- Rejected are damaged and truncated files, more than `MAX_PIXELS` pixels, floating point, 32-bit and signed integers,
  and undefined colors (a profile that doesn't fit the pixels, other primaries without a profile).

JPEG has no checksum: damaged data that still decodes can't be detected.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from microdit.common.errors import DataError
from microdit.data.images.color import Unreadable, check_colors, to_srgb

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I;16L")
MAX_PIXELS = 178_956_970  # twice Pillow's limit, at which its warning becomes an error
SAMPLE_FORMAT, BITS_PER_SAMPLE, PHOTOMETRIC = 339, 258, 262  # tags of TIFF
UNSIGNED, WHITE_IS_ZERO = 1, 0


def read_image(path: Path) -> Image.Image:
    """Return the image at `path`, upright, opaque, in 8-bit sRGB.

    Raises:
        DataError: if it can't be converted correctly; the message has the file and the reason.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"image {path} can't be read: {error}") from None
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode a file's content as `read_image` does.

    Args:
        data: the content.
        name: the file in messages.

    Returns:
        An image of mode RGB.

    Raises:
        DataError: if it can't be converted correctly; the message has `name` and the reason.
    """
    try:
        with _strict_pillow():
            return _decode(data)
    except Unreadable as reason:
        raise DataError(f"image {name} can't be read: {reason}") from None
    except Exception as error:  # on damaged files Pillow's decoders raise almost any type
        raise DataError(f"image {name} can't be read: {_short(error)}") from error


def load_square(path: Path, resolution: int) -> np.ndarray:
    """Read the central square of an image.

    Args:
        path: the image file.
        resolution: side of the result in pixels.

    Returns:
        (resolution, resolution, 3) uint8 sRGB.
    """
    return central_square(read_image(path), resolution)


def central_square(image: Image.Image, resolution: int) -> np.ndarray:
    """Return the central square of an image, resampled by Lanczos' filter.

    Args:
        image: an image of mode RGB.
        resolution: side of the result in pixels.

    Returns:
        (resolution, resolution, 3) uint8.
    """
    return np.array(ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS))


def header_fault(path: Path) -> str:
    """Return why an image can't be read, judging by its header; "" if it can."""
    try:
        with _strict_pillow(), Image.open(path, formats=FORMATS) as opened:
            _check_kind(opened)
    except Exception as error:
        return _short(error)
    return ""


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Turn off Pillow's warnings and its support of truncated images, whatever another library has set."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _decode(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data), formats=FORMATS) as opened:
        _check_kind(opened)
        if opened.format == "PNG":
            opened.verify()  # checks the checksums, which decoding ignores
    with Image.open(BytesIO(data), formats=FORMATS) as opened:
        raw_mode = _raw_mode(opened)
        bits = _gray_bits(opened)
        inverted = opened.mode.startswith("I;16") and _tag(opened, PHOTOMETRIC) == WHITE_IS_ZERO
        check_colors(opened)
        image = ImageOps.exif_transpose(opened)
    return to_srgb(image, raw_mode, bits, inverted)


def _check_kind(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    if image.mode == "F":
        raise Unreadable("its pixels are floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "I" and _raw_mode(image) != "I;16B":
        raise Unreadable("its pixels are 32-bit or signed integers, whose range is unknown; save it with 8 or 16 bits")
    if image.mode not in (*MODES, "I"):
        raise Unreadable(f"its pixels are of mode {image.mode}")
    formats = _tag(image, SAMPLE_FORMAT)
    if formats is not None and set(np.ravel(formats).tolist()) != {UNSIGNED}:
        raise Unreadable("its samples are not unsigned integers")


def _raw_mode(image: Image.Image) -> str:
    """Return how the file packs its pixels in Pillow's terms, such as "L;4" or "RGB;16B"; "" if unknown."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _gray_bits(image: Image.Image) -> int:
    """Return the bits per sample of a gray image with more than 8."""
    given = _tag(image, BITS_PER_SAMPLE)
    return int(np.ravel(given)[0]) if given is not None else 16


def _tag(image: Image.Image, number: int) -> Any:
    """Return the value of a TIFF file's tag; None if it is missing, or the file has another format."""
    tags = getattr(image, "tag_v2", None)
    return None if tags is None else tags.get(number)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
