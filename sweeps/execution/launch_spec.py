"""Define the options of a launch, and its settings in the queue, from which a worker needs only two URIs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microdit.common.contract import FINAL_PREFIX, SECONDS, objective_metric
from microdit.common.errors import ConfigError
from microdit.common.finite import require_sound, unsound
from microdit.common.parsing import assign, to_mapping
from microdit.config.identity import trial_key
from microdit.config.schema import Config, config_from_mapping
from sweeps.planning.trials import Trial


@dataclass(frozen=True)
class Options:
    """Options of a launch; none of them changes a result."""

    root: Path
    uri: str
    queue_uri: str
    workers: int
    reuse: bool
    command: str
    launcher: str = "local"
    launcher_options: tuple[str, ...] = ()
    max_retries: int = 1
    fail_fast: bool = False
    artifacts: str = ""  # folder or URI for the files of new experiments
    wide: bool = False  # tables print all columns


@dataclass(frozen=True)
class LaunchSpec:
    """Settings of one launch that its workers need.

    `search`, `sampler` and `pruner` are those of the study's YAML; a grid has none. `objectives` are final metrics:
    `clip_fd` means `final/clip_fd`, and a name with a slash is used as it is.
    """

    tracking_uri: str
    experiment_id: str
    parent_id: str
    study: str
    scale: str
    source: str
    root: str
    suffix: str
    command: str
    objectives: tuple[str, ...]
    reuse: bool = True
    max_retries: int = 1
    fail_fast: bool = False
    share_gpus: bool = True  # whether workers of one machine divide its GPUs
    search: Mapping[str, Any] = field(default_factory=dict)
    sampler: Any = "tpe"
    sampler_seed: int = 0
    pruner: Any = "none"
    divergence: str = "failure"  # or "data": a diverged run is a result, the worst possible
    directions: tuple[str, ...] = ("minimize",)  # of the objectives

    def as_mapping(self) -> dict[str, Any]:
        """Return all settings as values that JSON can store."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(values: Mapping[str, Any]) -> LaunchSpec:
        """Return the settings that `as_mapping` returned.

        Args:
            values: the mapping, in which JSON has replaced tuples by lists.
        """
        lists = {name: tuple(values[name]) for name in ("objectives", "directions")}
        return LaunchSpec(**{**values, **lists})

    def values(self, metrics: Mapping[str, float]) -> list[float]:
        """Return the objective values of a finished run, in the order of `objectives`.

        Args:
            metrics: the run's last value of each metric.

        Raises:
            ConfigError: if an objective is missing.
            DivergenceError: if a score is not finite.
        """
        require_sound(shown_metrics(metrics), "among the scores of the finished run")
        names = [objective_metric(name) for name in self.objectives]
        for name in names:
            if name not in metrics:
                raise ConfigError(f"{self.source}: the run has no metric '{name}', which is an objective")
        return [float(metrics[name]) for name in names]


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a finished run that the queue stores for tables.

    Args:
        metrics: the run's last value of each metric.
    """
    return {name: value for name, value in metrics.items() if name.startswith(FINAL_PREFIX) or name == SECONDS}


def unsound_scores(metrics: Mapping[str, float]) -> str:
    """Return the first non-finite final metric of a run, as `final/fd is nan`, or "".

    Args:
        metrics: the run's last value of each metric.
    """
    return unsound(shown_metrics(metrics))


def trial_attributes(trial: Trial) -> dict[str, Any]:
    """Return a planned trial as user attributes for the queue."""
    return {
        "name": trial.name,
        "arm": trial.arm,
        "seed": trial.seed,
        "key": trial.key,
        "params": dict(trial.params),
        "data_fingerprint": trial.data_fingerprint,
        "feature_net": trial.feature_net,
        "steps": trial.config.training.steps,
        "config": to_mapping(trial.config),
    }


def trial_of(attributes: Mapping[str, Any], spec: LaunchSpec) -> Trial:
    """Return the planned trial that `trial_attributes` stored.

    Args:
        attributes: user attributes of a trial in the queue.
        spec: settings of the launch.
    """
    return Trial(
        study=spec.study,
        scale=spec.scale,
        arm=attributes["arm"],
        seed=int(attributes["seed"]),
        config=config_from_mapping(attributes["config"], f"{spec.source}, trial '{attributes['name']}'"),
        key=attributes["key"],
        params=attributes["params"],
        data_fingerprint=attributes["data_fingerprint"],
        feature_net=attributes["feature_net"],
    )


def apply_suggestion(trial: Trial, values: Mapping[str, Any], spec: LaunchSpec) -> Trial:
    """Return a search's trial with the suggested values in its configuration.

    Args:
        trial: the trial with the search's base configuration.
        values: suggested value of each dotted key.
        spec: settings of the launch, for messages.
    """
    mapping = to_mapping(trial.config)
    for key, value in values.items():
        assign(mapping, key, value)
    config: Config = config_from_mapping(mapping, f"{spec.source}, {trial.name} with {dict(values)}")
    return dataclasses.replace(trial, config=config, key=trial_key(config), params=dict(values))
