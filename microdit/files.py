"""Writing files so that a kill leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write a file (or folder) at; renames it to `path` on success.

    A folder already at `path` is replaced. On an exception the temporary one is removed and `path` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = scratch / target.name
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            os.replace(target, scratch / "old")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def stamp(path: Path | str | None) -> str:
    """Digest of names, sizes and times of all files below a folder, '' where `path` is none: changes when they do."""
    digest, root = hashlib.sha256(), Path(path or "").expanduser()
    if not path or not root.is_dir():
        return ""
    for folder, _, names in sorted(os.walk(root, followlinks=True)):
        for name in sorted(names):
            found = Path(folder, name)
            facts = found.stat() if found.exists() else None
            digest.update(repr((str(found), facts and (facts.st_size, facts.st_mtime_ns))).encode())
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of one file's content alone; read once a process as long as its size and time stay."""
    facts = path.stat()
    return _content_digest(path.resolve(), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256(*paths: Path | str) -> str:
    """Hex digest over the files' names and contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).name.encode() + b"\0")
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
