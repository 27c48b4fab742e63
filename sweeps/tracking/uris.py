"""Make storage URIs absolute, lock their files while opening, and hide their passwords."""

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

TRACKING, QUEUE = "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"  # environment variables
REMOTE = ("http://", "https://")


def default_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the absolute URI of a sqlite file under `root`."""
    return _default(TRACKING, root / "mlflow.db")


def default_queue_uri(root: Path) -> str:
    """Return OPTUNA_STORAGE, or the absolute URI of a sqlite file under `root`."""
    return _default(QUEUE, root / "optuna.db")


def _default(variable: str, file: Path) -> str:
    named = os.environ.get(variable)
    if named:
        return absolute_uri(named, variable)
    try:
        return sqlite_uri(file)
    except ConfigError as error:
        raise ConfigError(f"root={shown_path(file.parent)}: {error}") from None


def absolute_uri(uri: str, source: str = "tracking_uri") -> str:
    """Return `uri` with the absolute path of a sqlite file.

    So workers in other folders open the same file.

    Args:
        uri: URI of a store.
        source: the setting or variable that it comes from, for messages.

    Raises:
        ConfigError: if it is not a valid URI of a store.
    """
    remember(uri)
    try:
        check_utf8(uri)
        path = sqlite_path(uri)
        if path is None or "file:" in uri:
            return uri
        _, mark, options = uri.partition("?")
        return f"{sqlite_uri(path)}{mark}{options}"
    except ConfigError as error:
        raise ConfigError(f"{source}={masked(shown_path(uri))}: {error}") from None


def shown_path(path: Path | str) -> str:
    """Return a path for a message; bytes that aren't UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def own_file(uri: str) -> Path | None:
    """Return the sqlite file that may be created and upgraded, or None.

    A file named by sqlite's `file:` URIs (such as ?mode=ro) is never changed.
    """
    return None if "file:" in uri else sqlite_path(uri)


def may_exist(uri: str) -> bool:
    """Return whether a store may exist at `uri`, without opening it.

    Opening a missing sqlite file would create it.
    """
    path = sqlite_path(uri)
    return path is None or path.is_file()


@contextmanager
def sqlite_creation_lock(uri: str) -> Iterator[None]:
    """Return a context that only one process at a time can enter per sqlite file.

    Concurrent creation of its tables fails. For other stores the context does nothing.
    """
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
    """Return the URI whose masked form is `uri`, if an environment variable has it.

    Otherwise return it without a password, which the driver then reads elsewhere: PGPASSWORD, ~/.pgpass, and over HTTP
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which a user name in the URI would override.

    Args:
        uri: a masked URI, or one without a password.
        variable: name of the environment variable.
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
    """Return a context that exports URIs with a secret to child processes.

    Everything else that they get is masked.

    Args:
        queue_uri: URI of the Optuna storage.
        tracking_uri: URI of the MLflow store.
    """
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
