"""Storage URIs: made absolute, opened by one process at a time, and stored and shown without their passwords."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from microdit.common.errors import ConfigError
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import HIDDEN, masked, remember
from microdit.common.stores.sqlite_uri import check_utf8, sqlite_path, sqlite_uri

TRACKING, QUEUE = "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"  # variables that name the two stores
REMOTE = ("http://", "https://")


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file under `root`; absolute either way."""
    return _default(TRACKING, root / "mlflow.db")


def default_queue_uri(root: Path) -> str:
    """OPTUNA_STORAGE, or a sqlite file under `root`."""
    return _default(QUEUE, root / "optuna.db")


def _default(variable: str, file: Path) -> str:
    named = os.environ.get(variable)
    if named:
        return absolute_uri(named, variable)
    try:
        return sqlite_uri(file)
    except ValueError as error:
        raise ConfigError(f"root={shown_path(file.parent)}: {error}") from None


def absolute_uri(uri: str, source: str = "tracking_uri") -> str:
    """`uri`, a sqlite file's with its absolute path, so that a worker in another folder opens the same file.

    Raises ConfigError naming `source` if no store can have this URI.
    """
    remember(uri)
    try:
        check_utf8(uri)
        path = sqlite_path(uri)
        if path is None or "file:" in uri:
            return uri
        _, mark, options = uri.partition("?")
        return f"{sqlite_uri(path)}{mark}{options}"
    except ValueError as error:
        raise ConfigError(f"{source}={masked(shown_path(uri))}: {error}") from None


def shown_path(path: Path | str) -> str:
    """A path for a message; bytes that aren't UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def database_file(uri: str) -> Path | None:
    """The sqlite file of a store's URI; None for a server and for a database in memory."""
    try:
        return sqlite_path(uri)
    except ValueError as error:
        raise ConfigError(f"{masked(shown_path(uri))}: {error}") from None


def own_file(uri: str) -> Path | None:
    """The sqlite file of a store that may be created and upgraded; None also for sqlite's file: URIs (?mode=ro)."""
    return None if "file:" in uri else database_file(uri)


def is_there(uri: str) -> bool:
    """Whether there may be a store at `uri`: opening a missing sqlite file would create it."""
    path = database_file(uri)
    return path is None or path.is_file()


@contextmanager
def sqlite_creation_lock(uri: str) -> Iterator[None]:
    """Let one process at a time open a sqlite file: several that create its tables together break each other."""
    path = own_file(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with waiting(f"another process to open {path}"):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def unmask_from_env(uri: str, variable: str) -> str:
    """The URI that `masked` has made `uri` of, if environment `variable` holds it.

    Otherwise one without a password, for which the driver asks its own places (PGPASSWORD, ~/.pgpass, and over HTTP
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which a user name in the URI would override).
    """
    if HIDDEN not in uri:
        return uri
    known = os.environ.get(variable, "")
    remember(known)
    if masked(known) == uri:
        return known
    if uri.startswith(REMOTE):
        return re.sub(r"://[^/@]*@", "://", uri)
    bare = re.sub(rf"[^=&?]+={re.escape(HIDDEN)}(?:&|$)", "", uri)
    return bare.replace(f":{HIDDEN}@", "@").rstrip("?&")


@contextmanager
def exported_to_children(queue_uri: str, tracking_uri: str) -> Iterator[None]:
    """Processes that are started meanwhile inherit the URIs that hold a secret: all else that they get is masked."""
    secret = {name: uri for name, uri in ((QUEUE, queue_uri), (TRACKING, tracking_uri)) if masked(uri) != uri}
    before = {name: os.environ.get(name) for name in secret}
    os.environ.update(secret)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
