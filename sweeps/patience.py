"""Waiting for a store that is locked or away: a restart of a server must not cost a GPU-hour."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

from microdit.errors import MicroditError

T = TypeVar("T")
P = ParamSpec("P")

TRIES = 10  # 0.25 s, doubled up to 30 s: a minute and a half together, and more where each try waits for a lock
LONGEST = 30.0
HOPELESS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")  # of MLflow: no retry mends these
AT_ONCE = ("UpdateFinishedTrialError", "DuplicatedStudyError")  # of Optuna: answers, not accidents
STORES = ("sqlalchemy", "sqlite3", "psycopg", "optuna", "mlflow", "requests", "urllib3")  # whose errors mean a store
FULL = ("disk is full", "No space left on device", "Disk quota exceeded")


class StoreError(MicroditError):
    """A store could not be reached or written, however patiently; the message says why."""


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call(...)`, again with growing pauses while it raises what may pass.

    Raises StoreError when patience is at its end, at once where the disk is full; any other error as it is.
    """
    for attempt in range(TRIES):
        try:
            return call(*args, **kwargs)
        except Exception as error:  # sqlite under another worker's lock, a server that restarts
            if not _may_pass(error):
                raise
            if attempt == TRIES - 1 or is_full(error):
                raise StoreError(store_trouble(error)) from error
            time.sleep(min(0.25 * 2**attempt, LONGEST))
    raise AssertionError("TRIES must be at least 1")


class Patient:
    """`client` with every method called patiently."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return partial(patiently, getattr(self._client, name))


def _may_pass(error: Exception) -> bool:
    answer = getattr(error, "error_code", "") in HOPELESS or type(error).__name__ in AT_ONCE
    return not answer and not isinstance(error, (ValueError, TypeError, KeyError, MicroditError))


def is_full(error: BaseException) -> bool:
    """Whether the disk under a store is full, which waiting doesn't mend."""
    root = _root(error)
    return getattr(root, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(root) for words in FULL)


def is_of_a_store(error: BaseException) -> bool:
    """Whether `error` tells of a disk, a database or a server rather than of a mistake in the program."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in STORES


def store_trouble(error: BaseException) -> str:
    """One sentence for the user."""
    words = " ".join(str(_root(error)).split())[:300]
    advice = "make room" if is_full(error) else "when the store is back"
    return f"a store can't be reached or written ({words}); {advice}, and the same command goes on where it stopped"


def _root(error: BaseException) -> BaseException:
    """What the database's driver or the system said first."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error
