"""Create and check the sqlite files of both stores.

A kill at any moment leaves a usable file. A new file is built under a temporary name in the same folder and renamed
when it is complete and closed. Callers hold the file's lock (`sweeps.tracking.uris`).
Servers such as PostgreSQL can't be renamed; there each migration is one transaction, so that a kill leaves the previous
schema.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.common.stores.sqlite_uri import sqlite_uri

MAGIC = b"SQLite format 3\0"
SIDE_FILES = ("-journal", "-wal", "-shm")  # endings of files that sqlite keeps next to an open database
BOOKKEEPING = "alembic_version"
LOCK_SECONDS = 60


@dataclass(frozen=True)
class Kind:
    """The definition of one kind of store.

    Attributes:
        name: name in messages.
        tables: returns the names of the tables of a complete store.
        build: makes a complete store at a path that doesn't exist.
        upgrade: the command that updates an older store, without its URI.
    """

    name: str
    tables: Callable[[], Iterable[str]]
    build: Callable[[Path], None]
    upgrade: str


def prepare(path: Path, kind: Kind) -> None:
    """Make sure that a file is a complete store; create it if it is missing.

    Args:
        path: the sqlite file; its folder exists.
        kind: the kind of store that it should be.

    Raises:
        ConfigError: if the file is damaged, incomplete, of another program, or of an older version.
    """
    _remove_leftovers(path)
    if not path.exists():
        _create(path, kind)
        return
    tables, expected = tables_of(path, kind) - {BOOKKEEPING}, set(kind.tables())
    missing, foreign = sorted(expected - tables), sorted(tables - expected)
    if missing and foreign and not expected & tables:
        raise ConfigError(
            f"{path} is a database of another program (its tables: {', '.join(foreign[:5])}), "
            f"not {_article(kind.name)}; name another file"
        )
    if missing:
        raise ConfigError(
            f"{path}: this {kind.name} lacks tables ({', '.join(missing[:5])}): an older version wrote it, or its "
            f"creation or upgrade was interrupted. Back it up and run '{kind.upgrade} {sqlite_uri(path)}', or move it "
            "aside to begin a new store"
        )


@contextmanager
def rewritten(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection to a copy of `path`, which replaces `path` at the end.

    If the block raises an error, `path` stays as it is.
    """
    _remove_leftovers(path)
    copy = _temporary(path)
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")  # other processes must not write; this one reads through another connection
            with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(copy)) as new:
                old.backup(new)
                with new:
                    yield new
            _finish(copy)
            os.replace(copy, path)
            lock.execute("ROLLBACK")
    finally:
        _remove(copy)


def tables_of(path: Path, kind: Kind) -> set[str]:
    """Return the names of a store's tables.

    Args:
        path: the sqlite file.
        kind: the kind of store that it should be, for messages.

    Raises:
        ConfigError: if the file is empty, damaged or not a sqlite database.
    """
    with open(path, "rb") as stream:
        head = stream.read(len(MAGIC))
    if not head:
        raise ConfigError(
            f"{path} is empty (0 bytes), so it is not {_article(kind.name)}; delete it to begin a new store, or "
            "restore it from a backup"
        )
    if head != MAGIC:
        raise ConfigError(f"{path} is not {_article(kind.name)}: it is not a sqlite database; name another file")
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as database:
            names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            return {name for name in names if not name.startswith("sqlite_")}
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        raise ConfigError(
            f"{path}: this {kind.name} is damaged or can't be read ({error}); restore it from a backup, or move it "
            "aside to begin a new store"
        ) from None


def _create(path: Path, kind: Kind) -> None:
    temporary = _temporary(path)
    try:
        kind.build(temporary)
        _finish(temporary)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _finish(path: Path) -> None:
    """Sync a closed database to the disk; raise RuntimeError if side files are left."""
    left = [f"{path}{ending}" for ending in SIDE_FILES if os.path.exists(f"{path}{ending}")]
    if left:
        raise RuntimeError(f"{left[0]} was left by a database that should be closed")
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new-{uuid.uuid4().hex[:12]}")


def _remove_leftovers(path: Path) -> None:
    """Remove files that a killed process left; the caller holds the lock, so no other process uses them."""
    prefix = f".{path.name}.new-"
    for name in os.listdir(path.parent):
        if name.startswith(prefix):
            (path.parent / name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    for ending in ("", *SIDE_FILES):
        with suppress(OSError):
            os.unlink(f"{path}{ending}")


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIMO' else 'a'} {name}"  # an MLflow store, an Optuna queue
