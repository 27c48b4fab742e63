"""Derive the trials of a study and check them before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microdit.common.contract import FINAL_VAL_LOSS, Tag
from microdit.common.errors import ConfigError, nearest
from microdit.common.parsing import flatten
from microdit.config.identity import identity_mapping, training_key, trial_key
from microdit.config.schema import Config, config_from_mapping
from microdit.config.sizes import check_stated_sizes
from microdit.evaluation.extensions import score_name
from microdit.pipeline.cost import training_flops
from sweeps.config.hydra_compose import as_override, compose_mapping
from sweeps.config.study import Study
from sweeps.planning.match_budget import HELD, MATCH, matched_keys, solve

BUDGET_TOLERANCE = 0.01  # relative difference allowed in the budget that a study holds
# Keys that overrides must not set, each with a hint.
RESERVED_KEYS = {"seed": "; give seeds=[...]", "name": "", "output_dir": "; give root=..."}


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
    data_fingerprint: str = ""  # of its training data, once prepared
    feature_net: str = ""  # network of its scores
    former: Sequence[Mapping[str, str]] = ()  # its identities under older, equivalent algorithms

    @property
    def name(self) -> str:
        """Return the name in tables, such as `none/seed0`."""
        return f"{self.arm}/seed{self.seed}"

    @property
    def identity(self) -> dict[str, str]:
        """Return the tags that identify a run of this trial."""
        return identity_tags(self.key, self.data_fingerprint, self.feature_net)


def identity_tags(key: str, data_fingerprint: str, feature_net: str) -> dict[str, str]:
    """Return the tags that identify a run; those that are "" are left out.

    Args:
        key: hash of settings, seed and algorithm.
        data_fingerprint: hash of the data.
        feature_net: name of the scoring networks and prompts.
    """
    tags = {Tag.TRIAL_KEY: key, Tag.DATA_FINGERPRINT: data_fingerprint, Tag.FEATURE_NET: feature_net}
    return {name: value for name, value in tags.items() if value}


def folder_name(name: str, key: str, data_fingerprint: str) -> str:
    """Return the name of a run's folder, which ends in a digest of settings and data.

    Args:
        name: arm and seed.
        key: hash of settings, seed and algorithm.
        data_fingerprint: hash of the data; other data get another folder.
    """
    return f"{name}-{hashlib.sha256(f'{key}/{data_fingerprint}'.encode()).hexdigest()[:8]}"


def plan_trials(study: Study, overrides: Sequence[str], complete: bool = True) -> list[Trial]:
    """Return all trials of a study: by seed, and within a seed the costliest first.

    Args:
        study: the study.
        overrides: those of the command line, which take precedence over the arms'.
        complete: whether required paths must be given; a plan does not need them.

    Raises:
        ConfigError: if an arm is invalid, duplicates another, or violates the study's fixed budget.
    """
    _check_overrides(study, overrides, complete)
    if study.file.search:
        return _plan_search(study, overrides, complete)
    configs = arm_configs(study, overrides, complete)
    for arm, config in configs.items():
        _check_sizes(config, f"{study.source}, arm '{arm}'")
    _reject_identical_arms(study, configs)
    _check_primary(study, configs)
    check_holds(study, configs)
    varying = varying_keys(list(configs.values()))
    flops = {arm: training_flops(config) for arm, config in configs.items()}
    ranked = sorted(configs, key=lambda arm: -flops[arm])
    trials = []
    for seed in study.seeds:
        for arm in ranked:
            config = dataclasses.replace(configs[arm], seed=seed, name=f"{arm}/seed{seed}")
            flat = flatten(identity_mapping(config))
            params = {name: flat.get(name) for name in varying}  # some arms may lack a free key
            trials.append(Trial(study.name, study.scale, arm, seed, config, trial_key(config), params))
    return trials


def _plan_search(study: Study, overrides: Sequence[str], complete: bool) -> list[Trial]:
    """Return the trials of a search with its base configuration; a worker fills in the suggested values."""
    config = dataclasses.replace(_arm_config(study, next(iter(study.arms)), overrides, complete), seed=study.seeds[0])
    _check_sizes(config, study.source)
    _check_primary(study, {"search": config})
    fixed = {word.partition("=")[0] for word in overrides}
    for key in study.file.search:
        if key in fixed:
            raise ConfigError(f"command line: '{key}' is searched by {study.source}; it can't be fixed too")
    trials = []
    for arm in study.arms:
        own = dataclasses.replace(config, name=f"{arm}/seed{config.seed}")
        trials.append(Trial(study.name, study.scale, arm, config.seed, own, f"{trial_key(own)}-{arm}", {}))
    return trials


def duplicate_training_keys(trials: Sequence[Trial]) -> set[str]:
    """Return the keys of trials whose network is trained by an earlier trial."""
    seen: set[tuple[str, str]] = set()
    duplicates = set()
    for trial in trials:
        key = (training_key(trial.config), trial.data_fingerprint)
        if key in seen:
            duplicates.add(trial.key)
        seen.add(key)
    return duplicates


def check_holds(study: Study, configs: Mapping[str, Config]) -> None:
    """Check that all arms have the budget that the study holds fixed.

    Args:
        study: the study.
        configs: configuration of each arm.

    Raises:
        ConfigError: if the budgets differ by more than `BUDGET_TOLERANCE`.
    """
    if study.file.holds in ("time", "nothing"):
        return  # time is known only afterwards
    measure, label = HELD[study.file.holds]
    amounts = {arm: measure(config) for arm, config in configs.items()}
    low, high = min(amounts, key=amounts.__getitem__), max(amounts, key=amounts.__getitem__)
    if amounts[high] - amounts[low] > BUDGET_TOLERANCE * amounts[high]:
        raise ConfigError(
            f"{study.source}: the study holds {study.file.holds}, but arm '{low}' has {amounts[low]:,} {label} and arm "
            f"'{high}' {amounts[high]:,}"
        )


def varying_keys(configs: Sequence[Config]) -> list[str]:
    """Return the flattened keys whose values differ between configurations."""
    flat = [flatten(identity_mapping(config)) for config in configs]
    keys = sorted(set().union(*flat))
    return [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1 and key != "seed"]


def _check_overrides(study: Study, overrides: Sequence[str], complete: bool) -> None:
    """Report an invalid override as one of the command line, before it is applied to an arm."""
    for word in overrides:
        key = word.partition("=")[0]
        if key in RESERVED_KEYS:
            raise ConfigError(f"command line: a study sets '{key}' itself{RESERVED_KEYS[key]}")
    compose_mapping([f"scale={study.scale}", *overrides], complete=complete)


def arm_configs(study: Study, overrides: Sequence[str], complete: bool = True) -> dict[str, Config]:
    """Return the configuration of each arm, with its `match` values solved.

    Args:
        study: the study.
        overrides: those of the command line, which take precedence over the arms'.
        complete: whether required paths must be given.
    """
    model = study.file.match or study.file.baseline
    base = _arm_config(study, model, overrides, complete) if model else None
    return {arm: _arm_config(study, arm, overrides, complete, base) for arm in study.arms}


def _arm_config(study: Study, arm: str, overrides: Sequence[str], complete: bool, base: Config | None = None) -> Config:
    source = f"{study.source}, arm '{arm}'"
    values = {**study.overrides, **study.arms[arm]}
    for key in values:
        if key in RESERVED_KEYS:
            raise ConfigError(f"{source}: '{key}' can't be set by an arm; list seeds under 'seeds'")
    words = [f"scale={study.scale}", *(word for key, value in values.items() for word in as_override(key, value))]
    matched = matched_keys(values)
    words = [word for word in [*words, *overrides] if word.partition("=")[0] not in matched]
    mapping = compose_mapping(words, source, complete)
    if matched:
        if base is None or study.file.holds not in HELD:
            raise ConfigError(
                f"{source}: '{matched[0]}' is '{MATCH}', which needs another arm to match (the 'baseline', or 'match') "
                f"and a 'holds' that is one of {', '.join(HELD)}"
            )
        measure, _ = HELD[study.file.holds]
        mapping = solve(mapping, matched, measure, measure(base), source)
    return config_from_mapping(mapping, source)


def _check_sizes(config: Config, source: str) -> None:
    try:
        check_stated_sizes(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _check_primary(study: Study, configs: Mapping[str, Config]) -> None:
    primary = study.file.metrics.primary
    for arm, config in configs.items():
        if primary == "class_accuracy" and config.evaluation.prompts is not None:
            raise ConfigError(
                f"{study.source}: 'metrics.primary' is '{primary}', which arm '{arm}' does not have: the prompts of "
                "the file 'evaluation.prompts' have no classes"
            )
        scores = (*map(score_name, config.evaluation.metrics), FINAL_VAL_LOSS)
        if primary not in scores:
            hint = nearest(primary, scores)
            raise ConfigError(f"{study.source}: 'metrics.primary' is '{primary}', which arm '{arm}' lacks; {hint}")


def _reject_identical_arms(study: Study, configs: Mapping[str, Config]) -> None:
    seen: dict[str, str] = {}
    for arm, config in configs.items():
        key = trial_key(config)
        if key in seen:
            raise ConfigError(f"{study.source}: arms '{seen[key]}' and '{arm}' have the same settings")
        seen[key] = arm
