"""Read prompts from a file in COCO's format or with one prompt per line."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.common.files.text import parse_json, read_text, split_lines

PROMPTS_KEY = "evaluation.prompts"


def read_prompts(path: Path | str, count: int) -> tuple[str, ...]:
    """Return the first prompts of a file.

    Args:
        path: a `.json` file in COCO's format, {"annotations": [{"image_id": ..., "caption": ...}, ...]}, of which the
            first caption of each image is used, in the order of the file; or a text file with one prompt per line.
        count: number of prompts.

    Returns:
        `count` prompts without surrounding spaces.

    Raises:
        ConfigError: if the file is missing or broken, or has fewer prompts; the message names the line or entry.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"'{PROMPTS_KEY}': {path}: no such file; give captions in COCO's format (such as captions_val2014.json "
            "of COCO's annotations_trainval2014.zip), a text file of one prompt per line, or null for held-out captions"
        )
    facts = path.stat()
    found = _read(path, facts.st_size, facts.st_mtime_ns)
    if len(found) < count:
        raise ConfigError(f"'evaluation.samples' is {count}, but '{PROMPTS_KEY}' ({path}) has {len(found)} prompts")
    return found[:count]


def prompts_digest(path: Path | str, count: int) -> str:
    """Return the SHA-256 of the prompts that are sampled, in hex.

    Scores are comparable only if it is equal.

    Args:
        path: as in `read_prompts`.
        count: number of prompts.
    """
    return hashlib.sha256(json.dumps(read_prompts(path, count)).encode()).hexdigest()


@lru_cache(maxsize=2)
def _read(path: Path, size: int, time: int) -> tuple[str, ...]:
    text = read_text(path, ConfigError, f"'{PROMPTS_KEY}': {path}")
    found = _coco(text, path) if path.suffix.lower() == ".json" else _lines(text, path)
    if not found:
        raise ConfigError(f"'{PROMPTS_KEY}': {path} has no prompts")
    return found


def _lines(text: str, path: Path) -> tuple[str, ...]:
    lines = split_lines(text.rstrip())
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(f"'{PROMPTS_KEY}': {path}: line {number} is empty; give one prompt per line")
    return tuple(line.strip() for line in lines)


def _coco(text: str, path: Path) -> tuple[str, ...]:
    stored = parse_json(text, f"'{PROMPTS_KEY}': {path}", error=ConfigError)
    entries = stored.get("annotations") if isinstance(stored, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(f"'{PROMPTS_KEY}': {path}: needs the key 'annotations', a list, as in COCO's captions")
    first: dict[int | str, str] = {}
    for number, entry in enumerate(entries):
        image, caption = (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not isinstance(image, (int, str)) or not isinstance(caption, str) or not caption.strip():
            raise ConfigError(
                f"'{PROMPTS_KEY}': {path}: entry {number} of 'annotations' needs an 'image_id' and a 'caption'"
            )
        first.setdefault(image, caption.strip())
    return tuple(first.values())
