"""Runs of a launch, all at once: plain rows of a database where MLflow's own search makes an object of each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PAGE = 1000
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


def search(client: Any, experiment: str, where: str, order: str) -> list[Any]:
    """All runs that match, over as many pages as it takes."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], where, order_by=[order], max_results=PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def children(client: Any, experiment: str, parent: str, metrics: Sequence[str]) -> Sequence[Any]:
    """The runs of a launch, oldest first, with at least the metrics whose names begin with one of `metrics`."""
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    if hasattr(store, "ManagedSessionMaker"):
        try:
            return _of_database(store, experiment, parent, metrics)
        except Exception:  # another version of MLflow: the slow way is always there
            pass
    return search(client, experiment, f"tags.`{PARENT}` = '{parent}'", "attributes.start_time ASC")


def _of_database(store: Any, experiment: str, parent: str, metrics: Sequence[str]) -> list[Run]:
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import or_, select

    run, tag, param, latest = (table.__table__.c for table in (SqlRun, SqlTag, SqlParam, SqlLatestMetric))
    place: Any = select(tag.run_uuid).where(tag.key == PARENT, tag.value == parent)
    about: Any = select(run.run_uuid, run.status, run.start_time, run.artifact_uri)
    ours = run.run_uuid.in_(place), run.experiment_id == int(experiment), run.lifecycle_stage == "active"
    wanted = or_(*(latest.key.startswith(name, autoescape=True) for name in metrics))
    numbers: Any = select(latest.run_uuid, latest.key, latest.value, latest.is_nan)
    with store.ManagedSessionMaker() as session:
        found = session.execute(about.where(*ours).order_by(run.start_time, run.run_uuid))
        runs = {row[0]: Run(Info(*row), Data()) for row in found}
        for column, name in ((tag, "tags"), (param, "params")):
            values: Mapping[str, dict[str, str]] = {key: getattr(one.data, name) for key, one in runs.items()}
            words: Any = select(column.run_uuid, column.key, column.value).where(column.run_uuid.in_(place))
            for run_id, key, value in session.execute(words):
                if run_id in values:
                    values[run_id][key] = value
        for run_id, key, number, is_nan in session.execute(numbers.where(latest.run_uuid.in_(place), wanted)):
            if run_id in runs:
                runs[run_id].data.metrics[key] = math.nan if is_nan else number
    return list(runs.values())
