"""Find finished trials and record launches in the MLflow store of a sweep.

Experiments, tags, parents and children are part of the contract with `analysis`; `sweeps.tracking.mlflow_logger` writes
the rest.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from microdit.common.contract import (
    SEED,
    SOURCE,
    STUDY_FILE,
    SYSTEM_PREFIX,
    MlflowTag,
    Role,
    Status,
    Tag,
    experiment_name,
    final_metric,
)
from microdit.common.errors import ConfigError
from microdit.common.files.atomic import write_text
from microdit.common.finite import is_sound
from microdit.common.process.identity import is_gone
from microdit.common.stores.run_search import launches, our_experiments, search_runs
from microdit.common.stores.secrets import masked, remember
from microdit.config.identity import ALGORITHM, changes_since
from sweeps.config.study import Study
from sweeps.execution.launch_spec import unsound_scores
from sweeps.planning.trials import Trial
from sweeps.tracking.mlflow_views import views
from sweeps.tracking.open_store import default_artifacts, location_of, opened, quiet
from sweeps.tracking.provenance import provenance, source_tags
from sweeps.tracking.relocate import advice
from sweeps.tracking.retry import RetryingClient
from sweeps.tracking.uris import own_file, sqlite_creation_lock

_advised: set[str] = set()
TRAINING_PAGES = {MlflowTag.EXPERIMENT_KIND: "custom_model_development"}  # not those of language models


@dataclass(frozen=True)
class Launch:
    """One launch of a study: the parent run and its experiment."""

    uri: str
    experiment_id: str
    parent_id: str


class Store:
    """Read and write one MLflow store, which is created if it is missing.

    Args:
        uri: URI of the store.
        root: folder of outputs, which also holds the artifacts of a database.
        artifacts: a folder or URI for the artifacts of new experiments; "" for the default.
    """

    def __init__(self, uri: str, root: Path, artifacts: str = "") -> None:
        quiet()
        remember(uri)
        self.uri = uri
        self.root = root
        self.artifacts = artifacts
        try:
            with sqlite_creation_lock(uri), default_artifacts(location_of(self.uri, self.root, self.artifacts, "")):
                client = opened(uri)
        except ConfigError as error:
            raise ConfigError(f"tracking_uri={masked(uri)}: {error}") from None
        except Exception as error:
            reason = masked(" ".join(str(error).split()))[:200]
            raise ConfigError(f"tracking_uri={masked(uri)}: can't be opened ({reason})") from None
        self.client: Any = RetryingClient(client)
        self._advise()

    def experiment(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Return the id of an experiment; create or restore it if needed.

        Args:
            name: name of the experiment.
            tags: tags that it gets.
        """
        found = self.client.get_experiment_by_name(name)
        if found is None:
            where = location_of(self.uri, self.root, self.artifacts, name)
            number = self.client.create_experiment(
                name, artifact_location=where, tags={**TRAINING_PAGES, **(tags or {})}
            )
            return str(number)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for key, value in (tags or {}).items():
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _advise(self) -> None:
        """Print one line if the folder of this store was moved, once per process."""
        path = own_file(self.uri)
        line = advice(path, self.root) if path is not None and multiprocessing.parent_process() is None else ""
        if line and line not in _advised:
            _advised.add(line)
            print(line, file=sys.stderr, flush=True)

    def start_launch(self, study: Study, trials: Sequence[Trial], command: str, fresh: bool, queue: str = "") -> Launch:
        """Start a launch, or resume the study's newest one if its plan is the same.

        An older launch of the same scale and plan is not resumed, because readers of the store use the newest one.

        Args:
            study: the study to launch.
            trials: all trials of the plan.
            command: the command that repeats the launch.
            fresh: whether to start a new launch even if the plan is the same.
            queue: name of the queue, a tag by which an abandoned launch is found and ended.

        Returns:
            The launch, whose parent run is RUNNING.
        """
        about = {
            MlflowTag.NOTE: study.file.question,
            Tag.PRIMARY: study.file.metrics.primary,
            Tag.DIRECTION: study.file.metrics.direction,
            **_views(study, trials),
        }
        experiment = self.experiment(experiment_name(study.name), about)
        names = sorted("/".join(trial.identity.values()) for trial in trials)
        plan = sha256("\n".join(names).encode()).hexdigest()[:16]
        run = self.newest_launch(experiment, study.scale)
        if run is not None and run.data.tags.get(Tag.PLAN) == plan and not fresh:
            self.client.set_tag(run.info.run_id, Tag.QUEUE, queue)
            self.client.update_run(run.info.run_id, status=Status.RUNNING)
            return Launch(self.uri, experiment, run.info.run_id)
        tags = {
            Tag.ROLE: Role.LAUNCH,
            Tag.QUEUE: queue,
            Tag.STUDY: study.name,
            Tag.SCALE: study.scale,
            Tag.PLAN: plan,
            MlflowTag.NOTE: description(study, trials, command),
            **source_tags(),
            **provenance(command).tags,
        }
        parent = self.client.create_run(experiment, run_name=f"{study.name} at {study.scale}", tags=tags)
        run_id = parent.info.run_id
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / STUDY_FILE
            write_text(path, yaml.safe_dump(study.as_mapping(), sort_keys=False, allow_unicode=True))
            self.client.log_artifact(run_id, str(path))
        return Launch(self.uri, experiment, run_id)

    def newest_launch(self, experiment: str, scale: str = "") -> Any | None:
        """Return the parent run of an experiment's newest launch, or None.

        Args:
            experiment: id of the experiment.
            scale: scale of the launch; any if "".
        """
        return next(iter(launches(self.client, experiment, scale, most=1)), None)

    def finished(self, identity: Mapping[str, str]) -> Any | None:
        """Return the newest finished run of any study with these tags, or None.

        Originals are preferred to copies. A run with a non-finite score counts as failed.

        Args:
            identity: name and value of each tag.
        """
        ours = [e.experiment_id for e in our_experiments(self.client)]
        found = search_runs(self.client, ours, identity, Status.FINISHED, "attributes.end_time DESC", most=50)
        found = [run for run in found if not unsound_scores(run.data.metrics)]
        originals = [run for run in found if Tag.REUSED_FROM not in run.data.tags]
        return next(iter([*originals, *found]), None)

    def finished_trial(self, trial: Trial) -> Any | None:
        """Return the newest finished run of `trial`, or None.

        Runs of an older algorithm with the same results are found too.
        """
        found = (self.finished(tags) for tags in (trial.identity, *trial.former))
        return next((run for run in found if run is not None), None)

    def outdated(self, experiment: str, scale: str, names: Collection[tuple[str, int]]) -> str:
        """Return one line about runs of older algorithms that are not reused, or "".

        Args:
            experiment: id of the experiment to search.
            scale: scale of the runs.
            names: arm and random seed of each run of interest.
        """
        query = f"tags.`{Tag.ROLE}` = '{Role.TRIAL}' and tags.`{Tag.SCALE}` = '{scale}'"
        counts: dict[int, Counter[str]] = {}
        for run in self.client.search_runs([experiment], query, max_results=5000):
            algorithm = int(run.data.tags.get(Tag.ALGORITHM, "1"))
            name = run.data.tags.get(Tag.ARM, ""), int(run.data.params.get(SEED, -1))
            if algorithm < ALGORITHM and name in names:
                state = "finished" if run.info.status == Status.FINISHED else "unfinished"
                counts.setdefault(algorithm, Counter())[state] += 1
        parts = []
        for algorithm, count in sorted(counts.items()):
            listed = " and ".join(f"{n} {state}" for state, n in sorted(count.items()))
            verb = "runs" if count.total() > 1 else "run"
            parts.append(f"{listed} {verb} of algorithm {algorithm} are not reused: {changes_since(algorithm)}")
        return "; ".join(parts) + " (they stay in the store)" if parts else ""

    def child(self, launch: Launch, key: str) -> Any | None:
        """Return a trial's newest run under a launch, or None.

        Incomplete copies of reused runs are deleted.

        Args:
            launch: the launch to search.
            key: the trial's key.
        """
        tags = {Tag.TRIAL_KEY: key, MlflowTag.PARENT: launch.parent_id}
        for run in search_runs(self.client, [launch.experiment_id], tags, most=9):
            if Tag.REUSED_FROM not in run.data.tags or run.info.status == Status.FINISHED:
                return run
            self.client.delete_run(run.info.run_id)
        return None

    def reuse(self, launch: Launch, trial: Trial, origin: Any) -> None:
        """Copy a finished run of another launch, with its metrics and artifacts.

        Args:
            launch: the launch that gets the copy as a child.
            trial: the trial of `launch` with the same identity.
            origin: the MLflow run to copy; the copy is tagged with the id of the original.
        """
        from mlflow.entities import Metric, Param

        carried = {k: v for k, v in origin.data.tags.items() if k.startswith(Tag.PREFIX)}
        tags = {Tag.REUSED_FROM: origin.info.run_id} | carried  # the original, if `origin` is a copy
        tags |= {
            MlflowTag.PARENT: launch.parent_id,
            MlflowTag.SOURCE_NAME: SOURCE,
            Tag.STUDY: trial.study,
            Tag.SCALE: trial.scale,
            Tag.ARM: trial.arm,
            Tag.ALGORITHM: str(ALGORITHM),
            **trial.identity,
        }
        run = self.client.create_run(launch.experiment_id, run_name=trial.name, tags=tags)
        metrics = [
            Metric(m.key, m.value, m.timestamp, m.step)
            for name in origin.data.metrics
            if not name.startswith(SYSTEM_PREFIX)
            for m in self.client.get_metric_history(origin.info.run_id, name)
            if is_sound(m.value)
        ]
        params = [Param(name, str(value)) for name, value in ({SEED: trial.seed} | dict(trial.params)).items()]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
        self.client.log_batch(run.info.run_id, params=params)
        with tempfile.TemporaryDirectory() as folder:
            for item in self.client.list_artifacts(origin.info.run_id):
                path = self.client.download_artifacts(origin.info.run_id, item.path, folder)
                self.client.log_artifact(run.info.run_id, path)
        self.client.set_terminated(run.info.run_id, Status.FINISHED)

    def mark_dead(self, launch: Launch, key: str, reason: str) -> None:
        """End a trial's running run as failed, because its worker has died.

        A later attempt may resume it.

        Args:
            launch: the launch that the trial belongs to.
            key: the trial's key.
            reason: why the worker could not end the run, recorded as a tag.
        """
        run = self.child(launch, key)
        if run is not None and run.info.status == Status.RUNNING:
            self.client.set_tag(run.info.run_id, Tag.ERROR, reason)
            self.client.set_terminated(run.info.run_id, Status.FAILED)

    def running_launches(self, study: str, queue: str) -> list[Launch]:
        """Return the launches of a queue whose parent run is still RUNNING.

        Args:
            study: name of the study.
            queue: name of the queue.
        """
        return [
            Launch(self.uri, run.info.experiment_id, run.info.run_id)
            for run in self._running(experiment_name(study))
            if run.data.tags.get(Tag.QUEUE) == queue
        ]

    def end_dead_runs(self, experiment: str) -> None:
        """End the running single runs of an experiment whose processes are gone.

        They were killed, and may be resumed.
        """
        for run in self._running(experiment):
            if is_gone(run.data.tags.get(Tag.PROCESS, "")):
                self.client.set_terminated(run.info.run_id, Status.KILLED)

    def _running(self, experiment: str) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return search_runs(self.client, [found.experiment_id], {}, Status.RUNNING)

    def finish_launch(self, launch: Launch, status: str) -> None:
        """End the parent run of a launch, and child runs whose workers have died.

        Args:
            launch: the launch to end.
            status: MLflow's status of the parent run.
        """
        self.client.set_terminated(launch.parent_id, status)
        for run in search_runs(
            self.client, [launch.experiment_id], {MlflowTag.PARENT: launch.parent_id}, Status.RUNNING
        ):
            self.client.set_terminated(run.info.run_id, Status.KILLED)

    def final_metrics(self, launch: Launch) -> list[tuple[str, int, Mapping[str, float]]]:
        """Return the metrics of the newest finished child of each trial.

        Returns:
            Arm, random seed and metrics of each trial whose scores are finite.
        """
        tags, order = {MlflowTag.PARENT: launch.parent_id}, "attributes.start_time ASC"
        rows: dict[tuple[str, int], Mapping[str, float]] = {}
        for run in search_runs(self.client, [launch.experiment_id], tags, Status.FINISHED, order):
            if not unsound_scores(run.data.metrics):
                rows[run.data.tags[Tag.ARM], int(run.data.params[SEED])] = run.data.metrics
        return [(arm, seed, metrics) for (arm, seed), metrics in rows.items()]


def description(study: Study, trials: Sequence[Trial], command: str) -> str:
    """Return the Markdown description of a running launch.

    The report replaces it with verdicts and a table.

    Args:
        study: the launched study.
        trials: all trials of the plan.
        command: the command that repeats the launch.
    """
    file = study.file
    section = f" (section {file.paper.section})" if file.paper.section else ""
    what = f"a search over {', '.join(file.search)}" if file.search else f"{len(study.arms)} arms"
    seeds = ", ".join(str(seed) for seed in study.seeds)
    facts = [
        f"Scale `{study.scale}`: {len(trials)} trials, {what}, seeds {seeds}.",
        f"Every arm is compared with `{file.baseline}`." if file.baseline else "",
        "" if file.holds == "nothing" else f"Held fixed over the arms: {file.holds.replace('_', ' ')}.",
        f"Judged by `{final_metric(file.metrics.primary)}` ({file.metrics.direction}).",
    ]
    commands = {
        masked(command): "resumes what is not finished",
        f"microdit-sweep status study={study.name} scale={study.scale}": "prints the progress",
        f"microdit-report {study.name} scale={study.scale}": "writes verdicts, table and figures here",
    }
    width = max(map(len, commands))
    parts = [
        f"**{file.question.strip()}**",
        f"The paper{section} claims: {file.paper.claim}." if file.paper.claim else "",
        " ".join(fact for fact in facts if fact),
        "\n".join(f"    {line.ljust(width)}  # {purpose}" for line, purpose in commands.items()),
    ]
    return "\n\n".join(part for part in parts if part)


def _views(study: Study, trials: Sequence[Trial]) -> dict[str, str]:
    params = dict.fromkeys(name for trial in trials for name in trial.params)
    steps = max((trial.config.training.steps for trial in trials), default=0)
    metrics, grouped = study.file.metrics, not study.file.search
    return views(metrics.primary, metrics.direction == "minimize", list(params), steps, grouped)
