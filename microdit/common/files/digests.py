"""Compute digests of files, and verify that a file is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

DIGEST = "sha256"  # key of the digest in a signed JSON file


def signed(values: Mapping[str, Any]) -> str:
    """Return JSON text of values with a digest, which `read_signed` verifies.

    Args:
        values: of JSON's types, without the key "sha256".
    """
    return json.dumps({**values, DIGEST: _json_digest(values)}, indent=1, ensure_ascii=False)


def read_signed(path: Path, optional: bool = False) -> dict[str, Any]:
    """Read a file written with `signed`.

    Args:
        path: the file.
        optional: accept a file without a digest.

    Returns:
        The values without the digest.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is not a JSON object, or its digest is wrong or missing.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return verified(values, optional)


def verified(values: dict[str, Any], optional: bool = False) -> dict[str, Any]:
    """Return the values of a signed JSON object without their digest.

    Args:
        values: with the digest, which is removed in place.
        optional: accept values without a digest.

    Raises:
        ValueError: if the digest is wrong or missing.
    """
    stored = values.pop(DIGEST, None)
    if stored is None and not optional:
        raise ValueError("it has no checksum")
    if stored is not None and stored != _json_digest(values):
        raise ValueError("wrong checksum: the file was changed or damaged")
    return values


def _json_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_state(path: Path | str) -> tuple[int, ...]:
    """Return numbers that change if a file is written, replaced or renamed.

    They include the time of the inode's last change (ctime), which a user can't set, unlike the time of modification.

    Returns:
        Size in bytes, mtime and ctime in ns, inode, device.
    """
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    It is cached in the process until the file's `file_state` changes.
    """
    return _content_digest(path.resolve(), file_state(path))


@lru_cache(maxsize=4096)
def _content_digest(path: Path, state: tuple[int, ...]) -> str:
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex, read anew at each call."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256(*paths: Path | str) -> str:
    """Return a hex digest of the files' names and contents, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).name.encode() + b"\0")
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
