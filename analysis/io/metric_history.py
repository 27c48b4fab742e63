"""Read a metric's history for many runs at once.

A sqlite store takes one query per 500 runs, a server one request per 100 runs, any other store one call per run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.store import sqlite_connection
from microdit.common.finite import LARGEST

History = tuple[np.ndarray, np.ndarray]  # steps in order, values
Point = tuple[str, int, int, float, bool]  # run, step, timestamp, value, whether it is NaN
MAX_QUERY_RUNS = 500  # per sqlite query, which takes at most 999 variables
MAX_REQUEST_RUNS, MAX_REQUEST_POINTS = 100, 25_000  # limits of MLflow's server
ROUTE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"  # used by the charts of MLflow's own pages
# Without INDEXED BY, sqlite scans the metric's points of all runs.
QUERY = (
    "SELECT run_uuid, step, timestamp, value, is_nan FROM metrics INDEXED BY index_metrics_run_uuid_key_step "
    "WHERE key = ? AND run_uuid IN ({})"
)


class _NoAnswer(Exception):
    """The server lacks the route, or can't return all points through it."""


def read_histories(client: Any, runs: Sequence[str], metric: str) -> dict[str, History]:
    """Return the history of a metric by run, the last value of each step.

    MLflow's client reads one run at a time. It is used if a store of another version rejects the faster ways.

    Args:
        client: MLflow's client of the store.
        runs: their ids.
        metric: its name in MLflow.

    Returns:
        Steps (ascending) and values by run id. Runs without a finite value are left out.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        with sqlite_connection(client) as database:
            if database is not None:
                return _by_run(_from_tables(database, runs, metric))
        if str(getattr(client, "tracking_uri", "")).startswith(("http://", "https://")):
            return _by_run(_from_server(client.tracking_uri, runs, metric))
    except (sqlite3.Error, MlflowException, RequestException, _NoAnswer):
        pass
    return _by_run(_one_by_one(client, runs, metric))


def _by_run(batches: Iterable[Sequence[Point]]) -> dict[str, History]:
    """Return one point per run and step: the newest, or the largest if several are."""
    found: dict[str, History] = {}
    for batch in batches:
        points = pd.DataFrame(batch, columns=["run", "step", "time", "value", "nan"])
        runs, names = pd.factorize(points["run"])
        values = np.where(points["nan"].to_numpy(bool), np.nan, points["value"].to_numpy(float))
        values = np.where(np.abs(values) < LARGEST, values, np.nan)
        steps = points["step"].to_numpy()
        order = np.lexsort((values, points["time"].to_numpy(), steps, runs))
        runs, steps, values = runs[order], steps[order], values[order]
        last = np.append((np.diff(runs) != 0) | (np.diff(steps) != 0), True)[: len(runs)]
        runs, steps, values = runs[last], steps[last], values[last]
        ends = np.searchsorted(runs, np.arange(len(names) + 1))
        for name, start, stop in zip(names, ends, ends[1:], strict=False):
            sound = np.isfinite(values[start:stop])  # NaN and infinity are left out of a curve
            if sound.any():
                found[str(name)] = steps[start:stop][sound], values[start:stop][sound]
    return found


def _from_tables(database: sqlite3.Connection, runs: Sequence[str], metric: str) -> Iterator[list[Point]]:
    for start in range(0, len(runs), MAX_QUERY_RUNS):
        asked = runs[start : start + MAX_QUERY_RUNS]
        yield database.execute(QUERY.format(", ".join("?" * len(asked))), (metric, *asked)).fetchall()


def _from_server(address: str, runs: Sequence[str], metric: str) -> Iterator[list[Point]]:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    credentials = get_default_host_creds(address)
    waiting = [list(runs[start : start + MAX_REQUEST_RUNS]) for start in range(0, len(runs), MAX_REQUEST_RUNS)]
    while waiting:
        asked = waiting.pop()
        params = [*(("run_id", run) for run in asked), ("metric_key", metric), ("max_results", str(MAX_REQUEST_POINTS))]
        answer = http_request(credentials, ROUTE, "GET", params=params)
        found: list[Mapping[str, Any]] | None = verify_rest_response(answer, ROUTE).json().get("metrics")
        if found is None:
            raise _NoAnswer
        if len(found) < MAX_REQUEST_POINTS:
            yield [(p["run_id"], int(p["step"]), int(p["timestamp"]), _number(p.get("value")), False) for p in found]
        elif len(asked) > 1:  # truncated
            middle = len(asked) // 2
            waiting += [asked[:middle], asked[middle:]]
        else:  # more points than one answer holds: MLflow's client reads them page by page
            raise _NoAnswer


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _one_by_one(client: Any, runs: Sequence[str], metric: str) -> Iterator[list[Point]]:
    for run in runs:
        yield [(run, p.step, p.timestamp, p.value, False) for p in client.get_metric_history(run, metric)]
