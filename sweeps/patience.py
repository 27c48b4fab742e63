"""Waiting for a store that is locked or away: a restart of a server must not cost a GPU-hour."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

TRIES = 10  # 0.25 s, doubled up to 30 s: about two minutes together
LONGEST = 30.0
HOPELESS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")  # of MLflow: no retry mends these
AT_ONCE = ("UpdateFinishedTrialError", "DuplicatedStudyError")  # of Optuna: answers, not accidents


def patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`call(...)`, again with growing pauses while it raises what may pass; the last error is raised as it is."""
    for attempt in range(TRIES):
        try:
            return call(*args, **kwargs)
        except Exception as error:  # sqlite under another worker's lock, a server that restarts
            answer = getattr(error, "error_code", "") in HOPELESS or type(error).__name__ in AT_ONCE
            if answer or isinstance(error, (ValueError, TypeError, KeyError)) or attempt == TRIES - 1:
                raise
            time.sleep(min(0.25 * 2**attempt, LONGEST))
    raise AssertionError("TRIES must be at least 1")
