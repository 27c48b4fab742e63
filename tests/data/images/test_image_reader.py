"""Test pixels of every kind of image file, and rejections by name; expected values are computed by hand."""

from __future__ import annotations

import json
import struct
import warnings
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import ADOBE_COLUMNS, ADOBE_GAMMA, chunk, encoded, png, profile
from PIL import Image, ImageFile

from microdit.common.errors import DataError
from microdit.data.config import DataConfig
from microdit.data.images.reader import FORMATS, decode_image, header_fault, read_image
from microdit.data.registry import build_dataset

SRGB_TO_D50 = np.array(  # Lindbloom's matrix, adapted by Bradford's method
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)


def pixels(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a leaking warning fails the test
        return np.asarray(decode_image(data, "a file")).astype(int)


def first(data: bytes) -> tuple[int, ...]:
    return tuple(pixels(data)[0, 0].tolist())


def near(found: object, expected: object, most: float = 1) -> None:
    assert np.abs(np.subtract(found, expected)).max() <= most, (found, expected)  # type: ignore[arg-type]


def rejected(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=f"image a file can't be read: .*{words}"):
        decode_image(data, "a file")


def srgb(xyz: np.ndarray) -> np.ndarray:
    """D50's X, Y, Z to 0..255, by sRGB's definition."""
    light = np.clip(np.linalg.solve(SRGB_TO_D50, xyz), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def on_white(color: float, alpha: int) -> float:
    return (color * alpha + 255 * (255 - alpha)) / 255


# ---- transparency ----


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@given(red=st.integers(0, 255), alpha=st.integers(1, 255))
def test_transparent_colors_are_composited_on_white(kind: str, red: int, alpha: int) -> None:
    data = encoded(
        Image.new("RGBA", (2, 2), (red, 40, 90, alpha)), kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    near(first(data), [on_white(value, alpha) for value in (red, 40, 90)])


def test_each_kind_of_transparency() -> None:
    gray = Image.frombytes("LA", (1, 1), bytes([100, 128]))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        near(first(encoded(gray, kind, **options)), [on_white(100, 128)] * 3)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putdata([0, 1])
    near(
        pixels(encoded(palette, "PNG", transparency=bytes([128, 255])))[0],
        [[on_white(v, 128) for v in (9, 8, 7)], [200, 100, 50]],
    )
    for kind in ("PNG", "GIF"):
        assert pixels(encoded(palette, kind, transparency=1)).tolist() == [[[9, 8, 7], [255, 255, 255]]]
    rgb = Image.new("RGB", (2, 1), (1, 2, 3))
    rgb.putpixel((1, 0), (1, 2, 4))
    assert pixels(encoded(rgb, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [1, 2, 4]]]


def test_premultiplied_colors_of_tiff_are_divided_by_alpha() -> None:
    """Associated alpha (ExtraSamples 1): the file holds color x alpha."""
    plain = encoded(Image.new("RGBA", (1, 1), (100, 50, 20, 128)), "TIFF")
    tag = struct.Struct("<HHIHH")
    assert plain.count(tag.pack(338, 3, 1, 2, 0)) == 1
    near(first(plain), [on_white(value, 128) for value in (100, 50, 20)])
    premultiplied = plain.replace(tag.pack(338, 3, 1, 2, 0), tag.pack(338, 3, 1, 1, 0))
    near(first(premultiplied), [100 + 127, 50 + 127, 20 + 127], 2)


@pytest.mark.parametrize(
    ("bits", "row", "key"), [(1, 0b01000000, 1), (2, 0b00_10_0000, 2), (4, 0x0A, 10), (8, None, 77)]
)
def test_the_transparent_gray_of_png_at_each_depth(bits: int, row: int | None, key: int) -> None:
    """Two pixels, of 0 and of the transparent value."""
    rows = [bytes([0, key]) if row is None else bytes([row])]
    found = pixels(png((2, 1), bits, 0, rows, chunk(b"tRNS", struct.pack(">H", key))))
    assert found.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert pixels(png((2, 1), bits, 0, rows))[0, 1, 0] == round(255 * key / (2**bits - 1))


def test_the_transparent_color_of_16_bits() -> None:
    gray = png((2, 1), 16, 0, [struct.pack(">HH", 1000, 30000)], chunk(b"tRNS", struct.pack(">H", 1000)))
    assert pixels(gray).tolist() == [[[255] * 3, [round(30000 / 257)] * 3]]
    values = struct.pack(">HHH", 1000, 30000, 65535)
    rejected(png((1, 1), 16, 2, [values], chunk(b"tRNS", values)), "16 bits")


# ---- depth ----


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_16_bit_gray_is_scaled(values: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.uint16))
    expected = [round(value / 257) for value in values]  # 65535 = 257 x 255; no value lies half-way
    big = Image.frombytes("I;16B", (len(values), 1), np.array(values, ">u2").tobytes())
    for data in (
        encoded(image, "PNG"),
        encoded(image, "TIFF"),
        encoded(big, "TIFF"),
        encoded(image, "TIFF", compression="tiff_lzw"),
    ):
        assert pixels(data)[0, :, 1].tolist() == expected
    assert pixels(encoded(image, "TIFF", tiffinfo={262: 0}))[0, :, 1].tolist() == [255 - value for value in expected]


def test_the_mean_of_a_16_bit_ramp() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16))
    assert pixels(encoded(ramp, "PNG")).mean() == pytest.approx(127.5, abs=0.5)


def test_16_bit_color() -> None:
    near(first(png((1, 1), 16, 2, [struct.pack(">HHH", 1000, 30000, 65535)])), [1000 / 257, 30000 / 257, 255])
    near(first(png((1, 1), 16, 4, [struct.pack(">HH", 30000, 32768)])), [on_white(30000 / 257, 128)] * 3)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_unknown_range_are_rejected(kind: type, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(np.array([[0, 1, 300]], kind)), "TIFF")
    rejected(data, "whose range is unknown")
    (tmp_path / "a.tif").write_bytes(data)
    assert "whose range is unknown" in header_fault(tmp_path / "a.tif")


def test_signed_samples_are_rejected() -> None:
    rejected(encoded(Image.new("L", (2, 2), 200), "TIFF", tiffinfo={339: 2}), "unsigned")


# ---- color ----


def test_an_embedded_profile_becomes_srgb() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        near(
            first(encoded(Image.new("RGB", (16, 16), (120, 180, 90)), kind, icc_profile=profile(), **options)),
            (81, 181, 83),
        )


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_adobe_rgb_by_formula(color: tuple[int, int, int]) -> None:
    light = (np.array(color) / 255) ** ADOBE_GAMMA
    expected = srgb(np.array(ADOBE_COLUMNS).T @ light)
    near(first(encoded(Image.new("RGB", (2, 2), color), "PNG", icc_profile=profile())), expected, 2)


def test_profiles_of_gray_palettes_and_transparent_images() -> None:
    gray = 255 * (1.055 * ((100 / 255) ** 1.0) ** (1 / 2.4) - 0.055)  # a profile of gamma 1: pixels are light
    near(first(encoded(Image.new("L", (2, 2), 100), "PNG", icc_profile=profile(b"GRAY", 1.0))), [gray] * 3)
    expected = srgb(np.array(ADOBE_COLUMNS).T @ (np.array((120, 180, 90)) / 255) ** ADOBE_GAMMA)
    clear = Image.new("RGBA", (2, 2), (120, 180, 90, 128))
    near(first(encoded(clear, "PNG", icc_profile=profile())), [on_white(value, 128) for value in expected], 2)
    palette = Image.new("P", (2, 2))
    palette.putpalette([120, 180, 90])
    near(first(encoded(palette, "PNG", icc_profile=profile())), expected)
    tone = 255 * (1.055 * ((100 / 255) ** ADOBE_GAMMA) ** (1 / 2.4) - 0.055)
    near(first(encoded(Image.new("L", (2, 2), 100), "PNG", icc_profile=profile())), [tone] * 3)  # gray with RGB's


def test_profiles_that_do_not_fit_are_rejected() -> None:
    rejected(encoded(Image.new("RGB", (2, 2)), "PNG", icc_profile=profile(b"GRAY")), "profile is for GRAY")
    rejected(encoded(Image.new("RGB", (2, 2)), "PNG", icc_profile=b"no profile" * 20), "profile is damaged")


def test_the_gamma_and_primaries_of_png() -> None:
    linear = png((1, 1), 8, 0, [bytes([100])], chunk(b"gAMA", struct.pack(">I", 100000)))
    near(first(linear), [255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)] * 3)
    usual = png((1, 1), 8, 0, [bytes([100])], chunk(b"gAMA", struct.pack(">I", 45455)))
    assert first(usual) == (100, 100, 100)
    adobe = [round(100000 * value) for value in (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)]
    rejected(png((1, 1), 8, 2, [bytes(3)], chunk(b"cHRM", struct.pack(">8I", *adobe))), "primaries")


def test_cmyk_ycbcr_and_lab() -> None:
    inks = Image.new("CMYK", (8, 8), (10, 120, 200, 40))
    expected = [(255 - ink) * (255 - 40) / 255 for ink in (10, 120, 200)]
    near(first(encoded(inks, "TIFF")), expected)
    near(first(encoded(inks, "JPEG", quality=100)), expected, 2)
    ycc = Image.merge("YCbCr", [Image.new("L", (8, 8), value) for value in (151, 93, 105)])
    near(first(encoded(ycc, "TIFF")), [151 + 1.402 * -23, 151 - 0.344136 * -35 - 0.714136 * -23, 151 + 1.772 * -35])
    lab = Image.frombytes("LAB", (1, 1), bytes([128, 30, 256 - 20]))  # a and b are signed in the file
    lightness = (128 * 100 / 255 + 16) / 116
    corners = np.array([lightness + 30 / 500, lightness, lightness + 20 / 200]) ** 3
    near(first(encoded(lab, "TIFF")), srgb(corners * (0.9642, 1.0, 0.8249)), 2)


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_images_are_rotated_upright(kind: str, orientation: int) -> None:
    """Check the four corners: EXIF's table of orientations gives the sides of row 0 and column 0."""
    upright = np.array([[10, 80], [160, 240]])
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose}
    turns |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90}
    stored = next(s for s in _arrangements() if np.array_equal(turns[orientation](s), upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(stored, np.ones((16, 16))).astype(np.uint8)).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    found = pixels(encoded(image, kind, exif=exif, **options))[8::16, 8::16, 0]
    near(found, upright, 2)


def _arrangements() -> list[np.ndarray]:
    return [np.array(order).reshape(2, 2) for order in permutations((10, 80, 160, 240))]


# ---- what is rejected ----


def test_other_formats_are_rejected_whatever_their_suffix(tmp_path: Path) -> None:
    for kind in ("PPM", "TGA", "ICO", "PCX", "JPEG2000"):
        try:
            data = encoded(Image.new("RGB", (32, 32), (9, 9, 9)), kind)
        except (OSError, KeyError):
            continue  # this Pillow can't write it
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.png can't be read"):
            read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"a\.png can't be read"):
        read_image(tmp_path / "a.png")
    assert not {"EPS", "PDF", "FITS", "PPM"} & set(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_files_are_rejected(kind: str, lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert pixels(data).shape == (32, 32, 3)
    for share in (0, 0.02, 0.3, 0.9, 0.99):
        rejected(data[: int(share * len(data))], "")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@given(st.data())
def test_no_flipped_bit_in_a_png_changes_its_pixels(data: st.DataObject) -> None:
    rows = [bytes((7 * x + 31 * y) % 256 for x in range(24)) for y in range(8)]
    good = png((8, 8), 8, 2, rows)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = pixels(bytes(bad))
    except DataError:
        return
    assert np.array_equal(found, pixels(good))


def test_bombs_are_rejected_without_decoding() -> None:
    rejected(png((20000, 20000), 8, 0, [b""]), "pixels")
    big = encoded(Image.new("1", (100_000, 950)), "PNG")  # above the size at which Pillow warns
    assert decode_image(big, "big").size == (100_000, 950)


def test_the_first_of_several_frames_is_used() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert first(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)) == (255, 0, 0)


@given(st.binary(max_size=200), st.sampled_from(FORMATS))
def test_random_bytes_raise_only_data_errors(tail: bytes, kind: str) -> None:
    good = encoded(Image.new("RGB", (4, 4)), kind)
    for data in (tail, good[:30] + tail, good[: len(good) // 2] + tail):
        with suppress(DataError):
            assert pixels(data).shape[2] == 3


# ---- through the dataset ----


def test_a_folder_is_checked_before_training_and_read_by_the_same_rule(tmp_path: Path) -> None:
    for name in ("a", "b"):
        data = encoded(Image.new("RGB", (20, 20), (120, 180, 90)), "PNG", icc_profile=profile())
        (tmp_path / f"{name}.png").write_bytes(data)
        (tmp_path / f"{name}.txt").write_text("green")
    config = DataConfig(name="folder", path=str(tmp_path), resolution=16)
    near(build_dataset(config, "train")[0].image, (81, 181, 83))
    (tmp_path / "c.tif").write_bytes(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": n, "text": "x"}) + "\n" for n in ("a.png", "b.png", "c.tif"))
    )
    with pytest.raises(DataError, match=r"1 files can't be read as images .*: c\.tif; the first: .*floating-point"):
        build_dataset(config, "train")
