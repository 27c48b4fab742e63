"""Retry while a store is locked or unreachable, so that a server's restart does not fail a trial."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from microdit.common.errors import MicroditError
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import masked
from sweeps.tracking.file_watch import StoreGone

T = TypeVar("T")
P = ParamSpec("P")

MAX_TRIES = 10  # pauses of 0.25 s, doubled up to 30 s: 90 s in total, more if a try waits for a lock
MAX_PAUSE_SECONDS = 30.0
NON_RETRYABLE_MLFLOW = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
NON_RETRYABLE_OPTUNA = ("UpdateFinishedTrialError", "DuplicatedStudyError")
STORE_PACKAGES = ("sqlalchemy", "sqlite3", "psycopg", "optuna", "mlflow", "requests", "urllib3")
# Signs of lasting trouble in the messages of databases.
FULL = ("disk is full", "No space left on device", "Disk quota exceeded")
DAMAGED = ("malformed", "file is not a database", "file is encrypted", "disk I/O error")
EMPTIED = ("no such table", "no such column", "UndefinedTable", "UndefinedColumn")
DENIED = ("readonly database", "ermission denied", "authentication failed", "Read-only file system")
BROKEN = (*DAMAGED, *EMPTIED, *DENIED)
LASTING_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
LASTING_ERRORS = (ValueError, TypeError, KeyError, AssertionError, MicroditError)  # invalid input or wrong code


class StoreError(MicroditError):
    """A store is still unreachable or unwritable after all retries, or no retry can help."""


def with_retries(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `call(...)`; after a temporary error, wait and repeat the call.

    The pauses grow. A long wait is reported.

    Args:
        call: a method of MLflow's client or of Optuna's storage, study or trial.
        *args: its positional arguments.
        **kwargs: its keyword arguments.

    Raises:
        StoreError: if all tries fail, or at once if the disk is full, the store is damaged or emptied, or access is
            denied. Other errors are raised unchanged.
    """
    store = _store_of(call)
    with waiting(store) as wait:
        for attempt in range(MAX_TRIES):
            try:
                return call(*args, **kwargs)
            except Exception as error:  # such as sqlite locked by another worker, or a restarting server
                if not _is_temporary(error):
                    raise
                # Try once more if it looks broken: a just removed file reads as broken once, then as missing.
                if attempt == MAX_TRIES - 1 or is_full(error) or (attempt and is_broken(error)):
                    raise StoreError(store_trouble(error)) from error
                wait.what = f"{store} ({masked(_message(error))[:200]})"
                time.sleep(min(0.25 * 2**attempt, MAX_PAUSE_SECONDS))
    raise AssertionError("MAX_TRIES must be at least 1")


class RetryingClient:
    """Wrap a client so that its methods are called with retries."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return partial(with_retries, getattr(self._client, name))


def _store_of(call: Any) -> str:
    """Return the store behind a method of MLflow's client or of Optuna's storage, study or trial."""
    owner = getattr(call, "__self__", None)
    for _ in range(2):
        owner = getattr(owner, "study", getattr(owner, "_storage", owner))
    owner = getattr(owner, "_backend", owner)  # Optuna's cache around a storage
    uri = getattr(owner, "tracking_uri", getattr(owner, "url", ""))
    return f"the store {masked(uri)}" if isinstance(uri, str) and uri else "a store"


def _is_temporary(error: Exception) -> bool:
    rejected = getattr(error, "error_code", "") in NON_RETRYABLE_MLFLOW or type(error).__name__ in NON_RETRYABLE_OPTUNA
    permanent = isinstance(error, OSError) and error.errno in LASTING_ERRNOS
    return not rejected and not permanent and not isinstance(error, LASTING_ERRORS)


def is_full(error: BaseException) -> bool:
    """Return whether the disk of a store is full, which a retry cannot fix."""
    root = _root(error)
    return getattr(root, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(root) for sign in FULL)


def is_broken(error: BaseException) -> bool:
    """Return whether a store is damaged, emptied or inaccessible.

    A retry cannot fix any of these.
    """
    root = _root(error)
    return any(sign in f"{type(root).__name__}: {root}" for sign in BROKEN)


def is_store_error(error: BaseException) -> bool:
    """Return whether an error comes from a full disk, a database or a server.

    Errors of ordinary files and programming errors do not count.
    """
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        return is_full(error) or error.filename is None
    return type(error).__module__.partition(".")[0] in (*STORE_PACKAGES, "sweeps") and not isinstance(
        error, AssertionError
    )


def store_trouble(error: BaseException) -> str:
    """Return one sentence about a store error, with advice."""
    message = _message(error)
    if is_full(error):
        advice = "make room, then"
    elif any(sign in message for sign in DAMAGED):
        advice = "restore the file from a backup, or move it aside to begin a new store, then"
    elif any(sign in message for sign in EMPTIED):
        advice = "the store was emptied or replaced: restore it, then"
    elif any(sign in message for sign in DENIED):
        advice = "make it accessible, then"
    elif isinstance(_root(error), StoreGone):
        advice = "put it back, then"
    else:
        advice = "when the store is back,"
    return f"a store can't be reached or written ({message}); {advice} the same command resumes where it stopped"


def _message(error: BaseException) -> str:
    return " ".join(str(_root(error)).split())[:300] or type(_root(error)).__name__


def _root(error: BaseException) -> BaseException:
    """Return the original error of the database's driver or the system."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error
