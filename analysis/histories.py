"""A metric's history for many runs at once: one query of a database, or one request a hundred runs of a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

History = tuple[np.ndarray, np.ndarray]  # steps in order, values
Point = tuple[str, int, int, float, bool]  # run, step, timestamp, value, whether it is NaN
RUNS = 400  # asked of a database at a time; sqlite takes 999 names in a query
REQUEST_RUNS, REQUEST_POINTS = 100, 25_000  # what MLflow's server takes and gives in one request
INDEX = "index_metrics_run_uuid_key_step"  # of MLflow's table of metrics
ROUTE = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"  # what its own pages draw their charts from


def read_histories(client: Any, runs: Sequence[str], metric: str) -> dict[str, History]:
    """The history of `metric` by run, the last value of each step; runs that never logged it are left out.

    MLflow's client knows single runs only; where its store is neither a database nor a server, each run is asked for.
    """
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    try:
        if hasattr(store, "ManagedSessionMaker"):
            return _by_run(_of_database(store, runs, metric))
        if hasattr(store, "get_host_creds"):
            return _by_run(_of_server(store, runs, metric))
    except Exception:  # another version of MLflow, or a server without that route: the slow way is always there
        pass
    return _by_run(_one_by_one(client, runs, metric))


def _by_run(batches: Iterable[Sequence[Point]]) -> dict[str, History]:
    """Points of whole runs by run; of a step the newest value, of equally new ones the greatest."""
    found: dict[str, History] = {}
    for batch in batches:
        if not batch:
            continue
        names, steps, times, values, nans = (np.array(column) for column in zip(*batch, strict=True))
        values = np.where(nans, np.nan, values.astype(float))
        runs, numbers = np.unique(names, return_inverse=True)
        order = np.lexsort((values, times, steps, numbers))
        numbers, steps, values = numbers[order], steps[order], values[order]
        last = np.append((np.diff(numbers) != 0) | (np.diff(steps) != 0), True)
        numbers, steps, values = numbers[last], steps[last], values[last]
        ends = np.searchsorted(numbers, np.arange(len(runs) + 1))
        for run, start, stop in zip(runs, ends, ends[1:], strict=False):
            found[str(run)] = steps[start:stop], values[start:stop]
    return found


def _of_database(store: Any, runs: Sequence[str], metric: str) -> Iterator[Sequence[Any]]:
    """Plain columns: MLflow's own bulk query makes three objects a point, which takes ten times as long."""
    from mlflow.store.tracking.dbmodels.models import SqlMetric
    from sqlalchemy import inspect, select

    table: Any = SqlMetric.__table__
    of = table.c
    query: Any = select(of.run_uuid, of.step, of.timestamp, of.value, of.is_nan).where(of.key == metric)
    with store.ManagedSessionMaker() as session:
        if INDEX in {index["name"] for index in inspect(session.get_bind()).get_indexes(table.name)}:
            query = query.with_hint(table, f"INDEXED BY {INDEX}", "sqlite")  # it would walk through all of the metric
        for start in range(0, len(runs), RUNS):
            yield session.execute(query.where(of.run_uuid.in_(runs[start : start + RUNS]))).all()


def _of_server(store: Any, runs: Sequence[str], metric: str) -> Iterator[list[Point]]:
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    waiting = [list(runs[start : start + REQUEST_RUNS]) for start in range(0, len(runs), REQUEST_RUNS)]
    while waiting:
        asked = waiting.pop()
        params = [*(("run_id", run) for run in asked), ("metric_key", metric), ("max_results", str(REQUEST_POINTS))]
        answer = http_request(store.get_host_creds(), ROUTE, "GET", params=params)
        found: list[Mapping[str, Any]] = verify_rest_response(answer, ROUTE).json()["metrics"]
        if len(found) < REQUEST_POINTS:
            yield [(p["run_id"], int(p["step"]), int(p["timestamp"]), float(p["value"]), False) for p in found]
        elif len(asked) > 1:  # it was cut short
            middle = len(asked) // 2
            waiting += [asked[:middle], asked[middle:]]
        else:
            raise OverflowError(f"run {asked[0]} has more points than one answer holds")


def _one_by_one(client: Any, runs: Sequence[str], metric: str) -> Iterator[list[Point]]:
    for run in runs:
        yield [
            (run, point.step, point.timestamp, point.value, False) for point in client.get_metric_history(run, metric)
        ]
