"""Convert decoded pixels of any depth, color profile, gamma and transparency to opaque 8-bit sRGB.

H W image height and width.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by a profile's color space
SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.05  # PNG's gAMA of sRGB; libpng's tolerance
SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue as x, y
INTEROPERABILITY, ADOBE_RGB = 0xA005, "R03"  # EXIF's directory, and its entry for Adobe RGB pixels
GRAY_SCALES = {"L;2": 85, "L;4": 17}  # factor from a file's sample to Pillow's pixel


class Unreadable(Exception):
    """A file's pixels cannot be converted correctly; the text is the reason."""


def check_colors(image: Image.Image) -> None:
    """Check that the file's colors can be converted to sRGB.

    Raises:
        Unreadable: if the file says that its colors are not sRGB, but has no ICC profile.
    """
    if image.info.get("icc_profile") or "srgb" in image.info:
        return
    mark = image.getexif().get_ifd(INTEROPERABILITY).get(1)
    if str(mark).strip("\0 ") == ADOBE_RGB:
        raise Unreadable("its EXIF data has Adobe RGB, but no ICC profile is embedded; convert it to sRGB")
    primaries = image.info.get("chromaticity")
    colored = image.mode in ("RGB", "RGBA", "P")
    if colored and primaries is not None and np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() > 0.01:
        raise Unreadable("its primaries (cHRM) are not sRGB's, and no ICC profile is embedded; convert it to sRGB")


def to_srgb(image: Image.Image, raw_mode: str, bits: int, inverted: bool) -> Image.Image:
    """Return an upright image as opaque 8-bit sRGB.

    Args:
        image: the decoded image.
        raw_mode: how the file packs its pixels, as Pillow names it.
        bits: bits per sample of a gray image of mode I or I;16.
        inverted: whether 0 is white in such an image.

    Returns:
        An image of mode RGB.

    Raises:
        Unreadable: if its color profile is damaged or fits other pixels, or its transparent color can't be found.
    """
    profile, alpha = image.info.get("icc_profile"), _alpha(image, raw_mode)
    gamma = None if profile or "srgb" in image.info else image.info.get("gamma")
    colors = _without_alpha(image, bits, inverted)
    rgb = _by_profile(colors, profile) if profile else colors.convert("RGB")
    if gamma is not None and abs(gamma / SRGB_GAMMA - 1) > GAMMA_TOLERANCE:
        rgb = rgb.point(_gamma_table(gamma) * 3)
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def _without_alpha(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Return the colors only, as L, RGB, CMYK or LAB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        most = 2**bits - 1
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > most:
            raise Unreadable(f"a sample is outside 0 to {most}")
        values = (values * 255 + most // 2) // most
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in ("L", "CMYK", "LAB"):
        return _opaque_copy(image)
    if image.mode == "1":
        return _opaque_copy(image).convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return _opaque_copy(image).convert("RGB")


def _opaque_copy(image: Image.Image) -> Image.Image:
    """Return a copy without the transparent color, which Pillow's conversions keep."""
    copy = image.copy()
    copy.info.pop("transparency", None)
    return copy


def _alpha(image: Image.Image, raw_mode: str) -> Image.Image | None:
    """Return the opacity (H, W), or None if all is opaque."""
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A")
    if image.mode == "La":
        return image.convert("LA").getchannel("A")
    if not image.has_transparency_data:
        return None
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").getchannel("A")
    key = image.info["transparency"]
    if image.mode == "RGB":
        if "16" in raw_mode:
            raise Unreadable("its transparent color has 16 bits, its pixels are read with 8; save it with 8 bits")
        return _opacity((np.asarray(image) != np.array(key)).any(axis=-1))
    if image.mode == "1":
        return _opacity(np.asarray(image) != bool(key))
    values = np.asarray(image)
    return _opacity(values != key * GRAY_SCALES.get(raw_mode, 1))


def _opacity(opaque: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))


def _by_profile(colors: Image.Image, profile: bytes) -> Image.Image:
    if colors.mode == "LAB":
        return colors.convert("RGB")  # Lab needs no profile
    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile)).profile.xcolor_space
    except (ImageCms.PyCMSError, OSError) as error:
        raise Unreadable(f"its ICC profile is damaged ({error})") from None
    mode = PROFILE_MODES.get(space)
    if mode == "RGB" and colors.mode == "L":
        colors = colors.convert("RGB")
    if mode != colors.mode:
        raise Unreadable(f"its ICC profile is for {space.strip()} pixels, but they are {colors.mode}")
    try:
        transform = _transform(profile, mode)
        return colors.convert("RGB") if transform is None else transform.apply(colors)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise Unreadable(f"its ICC profile can't be used ({error})") from None


@lru_cache(maxsize=32)  # the images of a folder have few distinct profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB; None for a profile that equals sRGB up to rounding."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    made = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return made
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        before = Image.fromarray(steps[None])
    else:
        before = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))
    change = np.asarray(made.apply(before)).astype(int) - np.asarray(before.convert("RGB"))
    return None if np.abs(change).max() <= 1 else made


def _gamma_table(gamma: float) -> list[int]:
    """Return the sRGB value of each of the 256 values of a file whose samples are light ** gamma."""
    light = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return [round(255 * float(value)) for value in encoded]
