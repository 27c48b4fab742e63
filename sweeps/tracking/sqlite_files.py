"""Create, check and upgrade the sqlite files of both stores.

A kill at any moment leaves a usable file. A new file is built under a temporary name in the same folder and renamed
when it is complete and closed; an upgrade is done on a copy. Callers hold the file's lock (`sweeps.tracking.uris`).
Servers such as PostgreSQL can't be renamed; there each migration is one transaction, so that a kill leaves the previous
schema.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from microdit.common.errors import ConfigError

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
        seeded: tables to which building the store adds rows.
        build: makes a complete store at a path that doesn't exist.
        upgrade: updates an older store to the present schema; None if that is left to the user.
    """

    name: str
    tables: Callable[[], Iterable[str]]
    seeded: frozenset[str]
    build: Callable[[Path], None]
    upgrade: Callable[[Path], None] | None = None


def prepare(path: Path, kind: Kind) -> None:
    """Make sure that a file is a complete store; create or upgrade it if needed.

    Args:
        path: the sqlite file; its folder exists.
        kind: the kind of store that it should be.

    Raises:
        ConfigError: if the file is damaged, of another program, or can't be upgraded.
    """
    _remove_leftovers(path)
    if not path.exists():
        _create(path, kind)
        return
    tables, expected = tables_of(path, kind), set(kind.tables())
    if expected <= set(tables):
        return
    foreign = set(tables) - expected - {BOOKKEEPING}
    if foreign and not expected & set(tables):
        raise ConfigError(
            f"{path} is a database of another program (its tables: {', '.join(sorted(foreign)[:5])}), "
            f"not {_article(kind.name)}; name another file"
        )
    kept = {name: rows for name, rows in tables.items() if rows and name not in (*kind.seeded, BOOKKEEPING)}
    if not kept:  # the launch that created it was killed
        aside = _free_name(path, "incomplete")
        _move(path, aside)
        _create(path, kind)
        _report(
            f"{path} was an incomplete {kind.name} without any data; it is now {aside.name}, and a new one was created"
        )
    elif kind.upgrade is not None:
        upgrade(path, kind)


def upgrade(path: Path, kind: Kind) -> None:
    """Replace an older store by an upgraded copy, and keep the old file.

    Args:
        path: the sqlite file.
        kind: the kind of store that it is, with an `upgrade`.

    Raises:
        ConfigError: if the upgrade fails; the file is unchanged then.
    """
    assert kind.upgrade is not None
    copy = _temporary(path)
    try:
        with closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
        kind.upgrade(copy)
        missing = set(kind.tables()) - set(tables_of(copy, kind))
        if missing:
            raise ConfigError(f"tables are still missing: {', '.join(sorted(missing)[:5])}")
        _finish(copy)
    except Exception as error:
        _remove(copy)
        reason = " ".join(str(error).partition("[SQL:")[0].split())[:300]
        raise ConfigError(
            f"{path}: the schema of this {kind.name} is not one that can be upgraded; an upgrade in place was probably "
            f"interrupted ({reason}). The file was not changed. Restore it from a backup, or move it aside "
            f"(mv {path.name} {path.name}.old) to begin a new store"
        ) from None
    kept = _free_name(path, "before-upgrade")
    try:
        os.link(path, kept)
    except OSError:  # a file system without hard links
        shutil.copy2(path, kept)
    os.replace(copy, path)
    _report(f"{path} was upgraded to the schema of the installed version; the old file is kept as {kept.name}")


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


def tables_of(path: Path, kind: Kind) -> dict[str, bool]:
    """Return the names of a store's tables, and whether each has rows.

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
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: _has_rows(database, name) for name in names if not name.startswith("sqlite_")}
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise
        raise ConfigError(
            f"{path}: this {kind.name} is damaged or can't be read ({error}); restore it from a backup, or move it "
            "aside to begin a new store"
        ) from None


def _has_rows(database: sqlite3.Connection, table: str) -> bool:
    name = table.replace('"', '""')
    return bool(database.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0])


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


def _move(path: Path, aside: Path) -> None:
    os.replace(path, aside)
    for ending in SIDE_FILES:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{ending}", f"{aside}{ending}")


def _free_name(path: Path, word: str) -> Path:
    stamp = f"{path.name}.{word}-{time.strftime('%Y%m%d-%H%M%S')}"
    found = path.with_name(stamp)
    number = 1
    while found.exists():
        number += 1
        found = path.with_name(f"{stamp}-{number}")
    return found


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIMO' else 'a'} {name}"  # an MLflow store, an Optuna queue


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
