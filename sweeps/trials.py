"""From a study to its trials, checked before any of them costs anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdit.config import Config, config_from_mapping, stable_mapping, trial_key
from microdit.errors import ConfigError
from microdit.model import cost
from sweeps.compose import as_override, compose_mapping
from sweeps.study import Study

TOLERANCE = 0.01  # of what a study holds


@dataclass(frozen=True)
class Trial:
    """One arm at one seed."""

    study: str
    scale: str
    arm: str
    seed: int
    config: Config
    key: str
    params: Mapping[str, Any]  # flattened settings that differ within the study

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"


def plan_trials(study: Study, overrides: Sequence[str], root: Path, suffix: str = "") -> list[Trial]:
    """All trials of `study`, all arms at the first seed before the next seed, the costliest arm of a seed first.

    `overrides` are the command line's and win over the arms. Raises ConfigError for an arm that is impossible, equal to
    another, or off what the study holds.
    """
    compose_mapping([f"scale={study.scale}", *overrides])  # a wrong word of the command line is called one
    configs = {arm: _arm_config(study, arm, overrides) for arm in study.arms}
    _refuse_twins(study, configs)
    check_holds(study, configs)
    varying = varying_keys(list(configs.values()))
    flops = {arm: training_flops(config) for arm, config in configs.items()}
    ranked = sorted(configs, key=lambda arm: -flops[arm])
    trials = []
    for seed in study.seeds:
        for arm in ranked:
            config = dataclasses.replace(configs[arm], seed=seed, name=f"{arm}/seed{seed}")
            key = trial_key(config)
            folder = root / study.name / study.scale / f"{arm}-seed{seed}-{key[:8]}{suffix}"
            config = dataclasses.replace(config, output_dir=str(folder))
            flat = flatten(stable_mapping(config))
            params = {name: flat[name] for name in varying}
            trials.append(Trial(study.name, study.scale, arm, seed, config, key, params))
    return trials


def training_flops(config: Config) -> int:
    """FLOPs of the whole training, text tokens counted as CLIP's 77."""
    return cost.training_flops(config.model) * config.training.steps * config.training.batch_size


def check_holds(study: Study, configs: Mapping[str, Config]) -> None:
    """Raises ConfigError naming arms and figures where the arms don't share what the study says they hold."""
    measures = {
        "steps": lambda c: c.training.steps * c.training.batch_size,
        "params": lambda c: cost.parameters(c.model),
        "flops": training_flops,
    }
    figures = {arm: measures[study.file.holds](config) for arm, config in configs.items()}
    low, high = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    if figures[high] - figures[low] > TOLERANCE * figures[high]:
        what = "images seen (steps x batch)" if study.file.holds == "steps" else study.file.holds
        raise ConfigError(
            f"{study.source}: the study holds {study.file.holds}, but arm '{low}' has {figures[low]:,} {what} and arm "
            f"'{high}' {figures[high]:,}"
        )


def varying_keys(configs: Sequence[Config]) -> list[str]:
    """Flattened keys whose values differ between configurations."""
    flat = [flatten(stable_mapping(config)) for config in configs]
    keys = sorted(set().union(*flat))
    return [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1 and key != "seed"]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _arm_config(study: Study, arm: str, overrides: Sequence[str]) -> Config:
    words = [f"scale={study.scale}"]
    for key, value in {**study.overrides, **study.arms[arm]}.items():
        words += as_override(key, value)
    source = f"{study.source}, arm '{arm}'"
    return config_from_mapping(compose_mapping([*words, *overrides], source), source)


def _refuse_twins(study: Study, configs: Mapping[str, Config]) -> None:
    seen: dict[str, str] = {}
    for arm, config in configs.items():
        key = trial_key(config)
        if key in seen:
            raise ConfigError(f"{study.source}: arms '{seen[key]}' and '{arm}' have the same settings")
        seen[key] = arm
