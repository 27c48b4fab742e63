"""Storage URIs: made absolute, opened once, and never shown or stored with the secret that may stand in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

SQLITE = "sqlite:///"
TRACKING, QUEUE = "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE"  # variables that name the two stores
HIDDEN = "***"
PASSWORD = re.compile(r"(://[^:/@\s]*):[^@\s]*(?:@[^@/\s]*)*@")  # also one with @ or / in it, as SQLAlchemy takes it
QUERY = re.compile(r"([?&](?:password|passwd|sslpassword)=)[^&\s'\"]*")


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file under `root`; absolute either way."""
    return absolute_uri(os.environ.get(TRACKING) or f"{SQLITE}{root / 'mlflow.db'}")


def default_queue_uri(root: Path) -> str:
    """OPTUNA_STORAGE, or a sqlite file under `root`."""
    return absolute_uri(os.environ.get(QUEUE) or f"{SQLITE}{root / 'optuna.db'}")


def absolute_uri(uri: str) -> str:
    """A sqlite URI of a relative path, made absolute: a worker elsewhere must mean the same file."""
    path = uri.removeprefix(SQLITE)
    return f"{SQLITE}{Path(path).absolute()}" if uri.startswith(SQLITE) and not path.startswith("file:") else uri


def is_there(uri: str) -> bool:
    """Whether there is a store to ask; asking would make a sqlite file that isn't there."""
    path = uri.removeprefix(SQLITE)
    return not uri.startswith(SQLITE) or path.startswith("file:") or Path(path).is_file()


@contextmanager
def created_once(uri: str) -> Iterator[None]:
    """One process at a time opens a sqlite file: several that create its tables together kill each other."""
    if not uri.startswith(SQLITE) or uri.startswith(f"{SQLITE}file:"):
        yield
        return
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def masked(text: str) -> str:
    """`text`, a URI or words with URIs in them, with `***` for every password."""
    return QUERY.sub(rf"\g<1>{HIDDEN}", PASSWORD.sub(rf"\g<1>:{HIDDEN}@", text))


def revealed(uri: str, variable: str) -> str:
    """The URI that `masked` has made `uri` of, if environment `variable` holds it.

    Otherwise one without a password, for which the driver asks its own places (PGPASSWORD, ~/.pgpass, and over HTTP
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which a user name in the URI would override).
    """
    if HIDDEN not in uri:
        return uri
    known = os.environ.get(variable, "")
    if masked(known) == uri:
        return known
    if uri.startswith(("http://", "https://")):
        return re.sub(r"://[^/@]*@", "://", uri)
    bare = re.sub(rf"(?:password|passwd|sslpassword)={re.escape(HIDDEN)}&?", "", uri)
    return bare.replace(f":{HIDDEN}@", "@").rstrip("?&")


@contextmanager
def lent(queue_uri: str, tracking_uri: str) -> Iterator[None]:
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
