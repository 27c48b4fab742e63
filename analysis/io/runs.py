"""Runs of a launch, all at once: by MLflow's client, or for a sqlite store the same from plain rows of its tables."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.io.store import sqlite_connection
from microdit.common.stores.run_search import search_runs

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Info:
    """The part of MLflow's RunInfo that a report reads."""

    run_id: str
    status: str
    start_time: int
    artifact_uri: str


@dataclass(frozen=True)
class Data:
    """The same of MLflow's RunData."""

    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run as MLflow's client shows it."""

    info: Info
    data: Data


def children(client: Any, experiment: str, parent: str, metrics: Sequence[str]) -> Sequence[Any]:
    """The runs of a launch, oldest first, with at least the metrics whose names begin with one of `metrics`."""
    try:
        with sqlite_connection(client) as database:
            if database is not None:
                return _of_tables(database, experiment, parent, metrics)
    except sqlite3.Error:
        pass
    return search_runs(client, [experiment], {PARENT: parent}, order="attributes.start_time ASC")


def _of_tables(database: sqlite3.Connection, experiment: str, parent: str, metrics: Sequence[str]) -> list[Run]:
    ours = (
        "FROM tags AS place JOIN runs USING (run_uuid){} WHERE place.key = ? AND place.value = ? "
        "AND runs.experiment_id = ? AND runs.lifecycle_stage = 'active'"
    )
    which = (PARENT, parent, int(experiment))
    about = f"SELECT run_uuid, status, start_time, artifact_uri {ours.format('')} ORDER BY start_time, run_uuid"
    runs = {row[0]: Run(Info(*row), Data()) for row in database.execute(about, which)}
    for table, values in (("tags", "tags"), ("params", "params")):
        words = f"SELECT run_uuid, own.key, own.value {ours.format(f' JOIN {table} AS own USING (run_uuid)')}"
        for run_id, key, value in database.execute(words, which):
            getattr(runs[run_id].data, values)[key] = value
    numbers = ours.format(" JOIN latest_metrics AS own USING (run_uuid)")
    wanted = " OR ".join("substr(own.key, 1, ?) = ?" for _ in metrics)
    prefixes = [part for name in metrics for part in (len(name), name)]
    words = f"SELECT run_uuid, own.key, own.value, own.is_nan {numbers} AND ({wanted})"
    for run_id, key, number, is_nan in database.execute(words, (*which, *prefixes)):
        runs[run_id].data.metrics[key] = math.nan if is_nan or number is None else number
    return list(runs.values())
