"""Read all runs of a launch at once.

A sqlite store is read from its tables, any other store with MLflow's client.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.io.store import sqlite_connection
from microdit.common.contract import MlflowTag
from microdit.common.stores.run_search import search_runs


@dataclass(frozen=True)
class Info:
    """The part of MLflow's RunInfo that a report reads."""

    run_id: str
    status: str
    start_time: int
    artifact_uri: str


@dataclass(frozen=True)
class Data:
    """The part of MLflow's RunData that a report reads."""

    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run with the attributes of MLflow's own class."""

    info: Info
    data: Data


def children(client: Any, experiment: str, parent: str, metrics: Sequence[str]) -> Sequence[Any]:
    """Return the runs of a launch, oldest first.

    Args:
        client: MLflow's client of the store.
        experiment: id of the study's experiment.
        parent: run id of the launch.
        metrics: beginnings of the names of the metrics that are needed; a run may have others too.

    Returns:
        MLflow's runs, or a `Run` with the same attributes for each.
    """
    try:
        with sqlite_connection(client) as database:
            if database is not None:
                return _from_tables(database, experiment, parent, metrics)
    except sqlite3.Error:
        pass
    return search_runs(client, [experiment], {MlflowTag.PARENT: parent}, order="attributes.start_time ASC")


def _from_tables(database: sqlite3.Connection, experiment: str, parent: str, metrics: Sequence[str]) -> list[Run]:
    ours = (
        "FROM tags AS place JOIN runs USING (run_uuid){} WHERE place.key = ? AND place.value = ? "
        "AND runs.experiment_id = ? AND runs.lifecycle_stage = 'active'"
    )
    which = (MlflowTag.PARENT, parent, int(experiment))
    about = f"SELECT run_uuid, status, start_time, artifact_uri {ours.format('')} ORDER BY start_time, run_uuid"
    runs = {row[0]: Run(Info(*row), Data()) for row in database.execute(about, which)}
    for table, values in (("tags", "tags"), ("params", "params")):
        query = f"SELECT run_uuid, own.key, own.value {ours.format(f' JOIN {table} AS own USING (run_uuid)')}"
        for run_id, key, value in database.execute(query, which):
            getattr(runs[run_id].data, values)[key] = value
    numbers = ours.format(" JOIN latest_metrics AS own USING (run_uuid)")
    wanted = " OR ".join("substr(own.key, 1, ?) = ?" for _ in metrics)
    prefixes = [part for name in metrics for part in (len(name), name)]
    query = f"SELECT run_uuid, own.key, own.value, own.is_nan {numbers} AND ({wanted})"
    for run_id, key, number, is_nan in database.execute(query, (*which, *prefixes)):
        runs[run_id].data.metrics[key] = math.nan if is_nan or number is None else number
    return list(runs.values())
