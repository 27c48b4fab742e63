"""The MLflow store: opened once before any worker, asked for finished trials, told about launches.

The schema (experiments, tags, parents and children) is the contract with `analysis`; DESIGN of the README names it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from microdit.errors import ConfigError
from microdit.files import write_text
from sweeps.provenance import provenance
from sweeps.study import Study
from sweeps.trials import Trial

STATUS_DONE = "FINISHED"


def quiet() -> None:
    """MLflow and its database layer log their every migration; a user's terminal is for the sweep."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def default_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file at an absolute path under `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


@dataclass(frozen=True)
class Launch:
    """One launch of a study: the parent run, and where its children go."""

    uri: str
    experiment_id: str
    parent_id: str


class Store:
    """A thin view of one tracking server for one sweep."""

    def __init__(self, uri: str, root: Path) -> None:
        quiet()
        import mlflow

        self.uri = uri
        self.root = root
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        self.client = mlflow.MlflowClient(uri)
        try:
            self.client.search_experiments(max_results=1)  # creates a fresh store's tables, once, before any worker
        except Exception as error:
            raise ConfigError(f"tracking_uri={uri}: can't be opened ({' '.join(str(error).split())[:200]})") from None

    def experiment(self, name: str) -> str:
        """Id of the experiment called `name`, made if it isn't there."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return found.experiment_id
        local = self.uri.startswith("sqlite:")
        location = (self.root / "mlartifacts" / name).resolve().as_uri() if local else None
        return self.client.create_experiment(name, artifact_location=location)

    def start_launch(self, study: Study, trials: Sequence[Trial], command: str, fresh: bool) -> Launch:
        """The parent run of these trials: an unfinished one of the same plan goes on, else a new one."""
        experiment = self.experiment(f"microdit/{study.name}")
        plan = sha256("".join(sorted(trial.key for trial in trials)).encode()).hexdigest()[:16]
        if not fresh:
            words = f"tags.`microdit.plan` = '{plan}' and tags.`microdit.role` = 'study'"
            for run in self.client.search_runs([experiment], words, order_by=["attributes.start_time DESC"]):
                self.client.set_terminated(run.info.run_id, "RUNNING")
                return Launch(self.uri, experiment, run.info.run_id)
        tags = {
            "microdit.role": "study",
            "microdit.study": study.name,
            "microdit.scale": study.scale,
            "microdit.plan": plan,
            "mlflow.note.content": f"**{study.file.question}**\n\nScale `{study.scale}`, {len(trials)} trials.",
            **provenance(command).tags,
        }
        parent = self.client.create_run(experiment, run_name=f"{study.name} at {study.scale}", tags=tags)
        run_id = parent.info.run_id
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.yaml"
            write_text(path, yaml.safe_dump(study.as_mapping(), sort_keys=False, allow_unicode=True))
            self.client.log_artifact(run_id, str(path))
        return Launch(self.uri, experiment, run_id)

    def finished(self, key: str) -> Any | None:
        """The newest finished run of trial `key` in any study, None if there is none."""
        experiments = [e.experiment_id for e in self.client.search_experiments(filter_string="name LIKE 'microdit/%'")]
        words = f"tags.`microdit.trial_key` = '{key}' and attributes.status = '{STATUS_DONE}'"
        found = self.client.search_runs(experiments, words, order_by=["attributes.end_time DESC"], max_results=20)
        own = [run for run in found if "microdit.reused_from" not in run.data.tags]
        return own[0] if own else None

    def child(self, launch: Launch, key: str) -> Any | None:
        """The newest run of trial `key` under this launch."""
        words = f"tags.`microdit.trial_key` = '{key}' and tags.`mlflow.parentRunId` = '{launch.parent_id}'"
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([launch.experiment_id], words, order_by=order, max_results=1)
        return found[0] if found else None

    def reuse(self, launch: Launch, trial: Trial, origin: Any) -> None:
        """A child that shows a finished run of another launch: its metrics, its pictures, and where it came from."""
        from mlflow.entities import Metric, Param

        carried = {k: v for k, v in origin.data.tags.items() if k.startswith("microdit.")}
        tags = carried | {
            "mlflow.parentRunId": launch.parent_id,
            "microdit.study": trial.study,
            "microdit.scale": trial.scale,
            "microdit.arm": trial.arm,
            "microdit.reused_from": origin.info.run_id,
        }
        run = self.client.create_run(launch.experiment_id, run_name=trial.name, tags=tags)
        metrics = [
            Metric(m.key, m.value, m.timestamp, m.step)
            for name in origin.data.metrics
            if not name.startswith("system/")
            for m in self.client.get_metric_history(origin.info.run_id, name)
        ]
        params = [Param(name, str(value)) for name, value in ({"seed": trial.seed} | dict(trial.params)).items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
        self.client.log_batch(run.info.run_id, params=params)
        with tempfile.TemporaryDirectory() as folder:
            for item in ("config.yaml", "samples"):
                path = self.client.download_artifacts(origin.info.run_id, item, folder)
                self.client.log_artifact(run.info.run_id, path)
        self.client.set_terminated(run.info.run_id, STATUS_DONE)

    def finish_launch(self, launch: Launch, failed: int) -> None:
        """Ends the parent run."""
        self.client.set_terminated(launch.parent_id, "FAILED" if failed else STATUS_DONE)

    def final_metrics(self, launch: Launch) -> list[tuple[str, int, Mapping[str, float]]]:
        """(arm, seed, metrics) of every finished child, the newest of each trial."""
        words = f"tags.`mlflow.parentRunId` = '{launch.parent_id}' and attributes.status = '{STATUS_DONE}'"
        rows: dict[tuple[str, int], Mapping[str, float]] = {}
        order = ["attributes.start_time ASC"]
        for run in self.client.search_runs([launch.experiment_id], words, order_by=order, max_results=5000):
            rows[run.data.tags["microdit.arm"], int(run.data.params["seed"])] = run.data.metrics
        return [(arm, seed, metrics) for (arm, seed), metrics in rows.items()]
