"""Scratch folders of reports: made beside what they replace, and removed when their writer was killed.

The same protocol as `microdit.common.files.atomic`: a writer holds a lock inside its folder while it lives.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

OWNER = "owner-"  # the beginning of the name of a writer's lock
OLDER = re.compile(r"\.report\.[a-z0-9_]{8}|\..+\.html\.\d+")  # folders and files of older versions, without a lock
EMPTY_SECONDS = 60.0  # after which an empty scratch folder is abandoned: a writer locks its folder at once
ABANDONED_SECONDS = 3600.0  # without a change, after which a folder of unknown owner is abandoned


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Give an empty folder in `parent` that `sweep` leaves alone while this process lives; it is removed afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name[:40]}.", dir=parent))
    lock = FileLock(scratch / f"{OWNER}{_machine()}", timeout=0)
    try:
        with suppress(OSError, NotImplementedError, Timeout):  # a file system without locks: age decides
            lock.acquire()
        yield scratch
    finally:
        lock.release(force=True)
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(parent: Path) -> list[Path]:
    """Remove the scratch folders of dead writers in `parent`; return their paths."""
    if not parent.is_dir():
        return []
    found = [path for path in parent.glob(".*") if not path.is_symlink()]
    dead = [path for path in found if (OLDER.fullmatch(path.name) or _owners(path)) and _is_abandoned(path)]
    for path in dead:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return dead


def _owners(path: Path) -> list[Path]:
    return list(path.glob(f"{OWNER}*")) if path.is_dir() else []


def _is_abandoned(path: Path) -> bool:
    try:
        owners = _owners(path)
        if owners and owners[0].name == f"{OWNER}{_machine()}":
            return not _is_locked(owners[0])
        found = [path, *path.rglob("*")]
        newest = max(os.lstat(entry).st_mtime for entry in found)
    except OSError:  # its writer removes it at this moment
        return False
    return time.time() - newest > (ABANDONED_SECONDS if len(found) > 1 else EMPTY_SECONDS)


def _is_locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True


@cache
def _machine() -> str:
    """A name of this machine since its boot: locks of other machines, or from before it, are not visible here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:16]
