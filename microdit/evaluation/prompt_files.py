"""Captions to draw from a file of the user's: COCO's annotation format, or a text file of one prompt a line."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.common.files.text import parse_json, read_text, split_lines

KEY = "evaluation.prompts"


def read_prompts(path: Path | str, count: int) -> tuple[str, ...]:
    """The first `count` prompts of the file at `path`.

    A file named `.json` has COCO's format, {"annotations": [{"image_id": ..., "caption": ...}, ...]}: the first caption
    of each image counts, images in the order in which they come. Any other file is text with one prompt per line, read
    as `text_files` says.

    Raises:
        ConfigError: the file is missing or broken, or has fewer prompts; names it and the line or entry.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"'{KEY}': {path}: no such file; give a captions file in COCO's format (captions_val2014.json, say, of "
            "COCO's annotations_trainval2014.zip), a text file of one prompt a line, or null for held-out captions"
        )
    facts = path.stat()
    found = _read(path, facts.st_size, facts.st_mtime_ns)
    if len(found) < count:
        raise ConfigError(f"'evaluation.samples' is {count}, but '{KEY}' ({path}) has {len(found)} prompts")
    return found[:count]


def prompts_digest(path: Path | str, count: int) -> str:
    """SHA-256 of the prompts that are drawn: scores compare only where it agrees."""
    return hashlib.sha256(json.dumps(read_prompts(path, count)).encode()).hexdigest()


@lru_cache(maxsize=2)
def _read(path: Path, size: int, time: int) -> tuple[str, ...]:
    text = read_text(path, ConfigError, f"'{KEY}': {path}")
    found = _coco(text, path) if path.suffix.lower() == ".json" else _lines(text, path)
    if not found:
        raise ConfigError(f"'{KEY}': {path} has no prompts")
    return found


def _lines(text: str, path: Path) -> tuple[str, ...]:
    lines = split_lines(text.rstrip())
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(f"'{KEY}': {path}: line {number} is empty; give one prompt per line")
    return tuple(line.strip() for line in lines)


def _coco(text: str, path: Path) -> tuple[str, ...]:
    stored = parse_json(text, f"'{KEY}': {path}", error=ConfigError)
    entries = stored.get("annotations") if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(f"'{KEY}': {path}: needs the key 'annotations', a list, as COCO's captions have it")
    first: dict[int | str, str] = {}
    for number, entry in enumerate(entries):
        image, caption = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not isinstance(image, (int, str)) or not isinstance(caption, str) or not caption.strip():
            raise ConfigError(f"'{KEY}': {path}: entry {number} of 'annotations' needs an 'image_id' and a 'caption'")
        first.setdefault(image, caption.strip())
    return tuple(first.values())
