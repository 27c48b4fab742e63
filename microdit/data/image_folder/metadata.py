"""Read the captions of a folder of images; errors have the file and line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdit.common.errors import DataError, named, nearest, shown
from microdit.common.files.atomic import walk_files
from microdit.common.files.text import SURROGATE, collapse_blanks, csv_rows, json_rows, read_text

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
CAPTION_COLUMNS = ("text", "caption")
FILE_COLUMN = "file_name"
SPLIT_NAMES = ("train", "val")
MAX_LABEL_DIGITS = 18
METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class CaptionedFile:
    """One image and its metadata."""

    file: str
    """Path relative to the folder, with forward slashes."""
    caption: str
    label: int | str | None
    split: str | None = None
    """The split in the metadata, None if it has none."""


def shorten_list(names: Sequence[str], max_names: int = 3) -> str:
    """Return the first few names and the number of others, for an error message.

    Args:
        names: file names, for example.
        max_names: how many of them are listed.
    """
    return ", ".join(map(named, names[:max_names])) + (
        f" and {len(names) - max_names} more" if len(names) > max_names else ""
    )


def read_captions(root: Path) -> list[CaptionedFile]:
    """Return the captioned images of a folder, in the metadata's order or by name.

    Raises:
        DataError: if captions are missing, malformed or not UTF-8, or name a file outside the folder.
    """
    images = images_of(root)
    found = [root / name for name in METADATA if (root / name).is_file()]
    if len(found) == 2:
        raise DataError(f"{root} has both {METADATA[0]} and {METADATA[1]}: keep one of them")
    if found:
        return _from_metadata(root, found[0], images)
    if not images:
        raise DataError(f"{root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return _from_sidecars(root, images)


def images_of(root: Path) -> list[str]:
    """Return the sorted paths of the images below a folder, with forward slashes.

    Raises:
        DataError: if a name is not UTF-8.
    """
    images = sorted(path.relative_to(root).as_posix() for path in walk_files(root) if _is_image(path))
    undecodable = [repr(os.fsencode(file)) for file in images if SURROGATE.search(file)]
    if undecodable:
        raise DataError(
            f"{root}: {len(undecodable)} file names are not UTF-8: {shorten_list(undecodable)}; rename the files"
        )
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _from_sidecars(root: Path, images: list[str]) -> list[CaptionedFile]:
    entries, missing = [], []
    for file in images:
        sidecar = (root / file).with_suffix(".txt")
        caption = collapse_blanks(read_text(sidecar)) if sidecar.is_file() else ""
        if caption:
            entries.append(CaptionedFile(file, caption, None))
        else:
            missing.append(file)
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(images)} images have no caption: {shorten_list(missing)}. Write one in a "
            f".txt file beside each image, or all of them in {METADATA[0]} with the keys '{FILE_COLUMN}' and 'text'"
        )
    return entries


def _from_metadata(root: Path, metadata: Path, images: list[str]) -> list[CaptionedFile]:
    entries, missing = [], []
    rows = _objects(metadata) if metadata.suffix == ".jsonl" else _records(metadata)
    for line, row in rows:
        file = _inside(row.get(FILE_COLUMN), metadata, line)
        caption = next((row[column] for column in CAPTION_COLUMNS if row.get(column) is not None), "")
        if not isinstance(caption, str):
            raise DataError(f"{metadata}, line {line}: the caption must be text, got {shown(caption)}")
        if collapse_blanks(caption):
            label, split = _label(row.get("label"), metadata, line), _split(row.get("split"), metadata, line)
            entries.append(CaptionedFile(file, collapse_blanks(caption), label, split))
        else:
            missing.append(f"{file} (line {line})")
    if missing:
        raise DataError(f"{metadata}: {len(missing)} images have no caption: {shorten_list(missing)}")
    if not entries:
        raise DataError(f"{metadata} names no images")
    listed = {entry.file for entry in entries}
    unlisted = [file for file in images if file not in listed]
    if unlisted:
        raise DataError(f"{metadata} has no caption for {len(unlisted)} images of its folder: {shorten_list(unlisted)}")
    return entries


def _objects(metadata: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, row in json_rows(metadata):
        if not isinstance(row, dict):
            raise DataError(f"{metadata}, line {line}: expected an object like {{'{FILE_COLUMN}': ..., 'text': ...}}")
        _require_columns(list(row), f"{metadata}, line {line}")
        yield line, row


def _records(metadata: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv_rows(metadata)
    _, columns = next(rows, (1, []))
    _require_columns(columns, f"{metadata}, header")
    repeated = [column for i, column in enumerate(columns) if column in columns[:i]]
    if repeated:
        raise DataError(f"{metadata}, header: the column '{repeated[0]}' occurs twice")
    for line, fields in rows:
        if len(fields) != len(columns):
            counts = f"{len(fields)} and {len(columns)}"
            raise DataError(f"{metadata}, line {line}: not as many fields as the header has ({counts})")
        yield line, dict(zip(columns, fields, strict=True))


def _require_columns(columns: list[str], where: str) -> None:
    if FILE_COLUMN not in columns:
        raise DataError(f"{where}: '{FILE_COLUMN}' is missing{_hint(FILE_COLUMN, columns)}")
    if not set(CAPTION_COLUMNS) & set(columns):
        others = [column for column in columns if column not in (FILE_COLUMN, "label", "split")]
        raise DataError(f"{where}: 'text' or 'caption' is missing{_hint('text', others)}")


def _hint(name: str, columns: list[str]) -> str:
    if not columns:
        return ""
    hint = nearest(name, columns)
    return f"; {hint}".replace("did you mean", "is it").replace("valid choices: ", "it has only ")


def _inside(name: Any, metadata: Path, line: int) -> str:
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{metadata}, line {line}: '{FILE_COLUMN}' is empty or not text: {shown(name)}")
    # Links are not resolved: a folder may have links to files elsewhere.
    normal = os.path.normpath(name.replace("\\", "/"))
    if os.path.isabs(normal) or normal.split(os.sep)[0] in ("..", "") or ":" in normal.split(os.sep)[0]:
        raise DataError(f"{metadata}, line {line}: '{named(name)}' is outside the folder {metadata.parent}")
    return Path(normal).as_posix()


def _label(value: Any, metadata: Path, line: int) -> int | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) <= MAX_LABEL_DIGITS else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise DataError(f"{metadata}, line {line}: 'label' must be a name or a number from 0 up, got {shown(value)}")


def _split(value: Any, metadata: Path, line: int) -> str | None:
    if value is None or value == "":
        return None
    if value not in SPLIT_NAMES:
        raise DataError(f"{metadata}, line {line}: 'split' is {shown(value)}; {nearest(value, SPLIT_NAMES)}")
    return str(value)
