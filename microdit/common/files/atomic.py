"""Write files atomically, remove files of killed writers, name files by content.

A file or folder is written in a scratch folder `.NAME.XXXXXXXX` beside its target and then renamed into place. While
its writer runs, it holds a lock in that folder, so `sweep` can distinguish abandoned scratch folders.
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

from microdit.common.errors import DataError, named
from microdit.common.files.digests import file_state

SCRATCH = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}", re.DOTALL)  # names made by tempfile.mkdtemp with our prefix

SCRATCH_NAME_LENGTH = 40  # characters of the target's name; a folder's name may have 255 bytes

REPLACED = "old"  # in a scratch folder: the folder that the new one replaces

OWNER = "owner-"  # in a scratch folder: prefix of its writer's lock

EMPTY_SECONDS = 60.0  # age of an abandoned empty scratch folder: writers lock their folder at once

ABANDONED_SECONDS = 3600.0  # age since the last change of an abandoned scratch folder whose owner is unknown


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, and rename it on success.

    A folder already at `path` is replaced. On an exception the temporary one is removed and `path` is unchanged.
    """
    target = Path(path)
    with scratch_folder(target.parent, target.name) as scratch:
        temporary = scratch / target.name
        yield temporary
        if temporary.is_dir() and target.is_dir():
            os.replace(target, scratch / REPLACED)
        os.replace(temporary, target)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder that `sweep` keeps while this process runs.

    It is removed afterwards.

    Args:
        parent: made if missing.
        name: of the target; the folder is called `.NAME.XXXXXXXX`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name[:SCRATCH_NAME_LENGTH]}.", dir=parent))
    lock = FileLock(scratch / f"{OWNER}{_machine()}", timeout=0)
    try:
        with suppress(OSError, NotImplementedError, Timeout):  # on a file system without locks the age decides
            lock.acquire()
        yield scratch
    finally:
        lock.release(force=True)
        shutil.rmtree(scratch, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder such that a kill leaves it complete or removed."""
    with scratch_folder(path.parent, path.name) as scratch:
        os.replace(path, scratch / REPLACED)


def sweep(root: Path | str, depth: int = 0) -> list[Path]:
    """Remove the scratch folders of dead writers.

    A writer of this machine (since its boot) is dead if nobody holds its lock. Of other writers only the age is known:
    their folders are removed after an hour without a change. Empty folders, left between their creation and their lock,
    are removed after a minute. A replacement that was interrupted between its two renames is completed.

    Args:
        root: the folder to search; it may be missing.
        depth: number of levels below `root` to search.

    Returns:
        The removed paths.
    """
    swept: list[Path] = []
    try:
        entries = [entry for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # no such folder, or no permission
        return swept
    for entry in entries:
        path = Path(entry.path)
        match = SCRATCH.fullmatch(entry.name)
        if match and _is_scratch(path, match["name"]):
            if _is_abandoned(path):
                _clear(path)
                swept.append(path)
        elif depth:
            swept += sweep(path, depth - 1)
    return swept


def _is_scratch(path: Path, name: str) -> bool:
    """Return whether a folder is a scratch folder.

    It then contains an owner's lock or, if an older version wrote it, only the named file.
    """
    try:
        found = os.listdir(path)
    except OSError:
        return False
    if any(entry.startswith(OWNER) for entry in found):
        return True
    return all(entry[:SCRATCH_NAME_LENGTH] == name or entry == REPLACED for entry in found)


def _is_abandoned(path: Path) -> bool:
    try:
        owners = list(path.glob(f"{OWNER}*"))
        if owners and owners[0].name == f"{OWNER}{_machine()}":
            return not _is_locked(owners[0])
        found = [path, *path.rglob("*")]
        newest = max(os.lstat(entry).st_mtime for entry in found)
    except OSError:  # its writer is removing it
        return False
    return time.time() - newest > (ABANDONED_SECONDS if len(found) > 1 else EMPTY_SECONDS)


def _is_locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True


def _clear(scratch: Path) -> None:
    for made in scratch.iterdir():
        target = scratch.parent / made.name
        if (scratch / REPLACED).exists() and made.name != REPLACED and made.is_dir() and not target.exists():
            with suppress(OSError):
                os.replace(made, target)
    shutil.rmtree(scratch, ignore_errors=True)


@cache
def _machine() -> str:
    """Return a name of this machine since its boot.

    Locks of other machines or boots are not visible here.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = platform.node()
    return hashlib.sha256(boot.encode()).hexdigest()[:16]


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically, as UTF-8.

    Args:
        path: the file; its folder is made if missing.
        text: the content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_trouble(error: OSError) -> str:
    """Return one line about a file-system error: the file, and what is wrong."""
    names = [named(name, 300) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return f"{' -> '.join(names) or 'a file'}: {error.strerror or error}"


def walk_files(root: Path) -> Iterator[Path]:
    """Yield all files below a folder in the order of names, following links.

    Each folder is listed once, under the first name that leads to it, so loops of links end.

    Raises:
        DataError: if a folder can't be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            facts = folder.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{named(folder, 300)}: can't be listed ({error.strerror})") from None
        folders = []
        for entry in entries:
            if os.path.isdir(entry.path):  # False for a link to itself, for which the entry's own method raises
                folders.append(folder / entry.name)
            else:
                yield folder / entry.name
        waiting += reversed(folders)


def stat_fingerprint(path: Path | str | None) -> str:
    """Return a digest of names and `file_state` of all files below a folder.

    It is "" if `path` is not a folder.
    """
    digest, root = hashlib.sha256(), Path(path or "").expanduser()
    if not path or not os.path.isdir(root):
        return ""
    for found in walk_files(root):
        name = str(found).encode("utf-8", "surrogateescape")  # a file name need not be UTF-8
        digest.update(name + repr(file_state(found) if os.path.exists(found) else None).encode())
    return digest.hexdigest()
