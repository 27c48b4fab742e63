"""From a study to its trials, checked before any of them costs anything."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microdit.common.contract import FINAL_VAL_LOSS, Tag
from microdit.common.errors import ConfigError, nearest
from microdit.common.parsing import flatten
from microdit.config.identity import former_key, identity_mapping, trial_key
from microdit.config.schema import Config, config_from_mapping
from microdit.config.sizes import check_stated_sizes
from microdit.pipeline.cost import training_flops
from sweeps.config.hydra_compose import as_override, compose_mapping
from sweeps.config.study import Study
from sweeps.planning.match_budget import HELD, MATCH, matched_keys, solve

TOLERANCE = 0.01  # of what a study holds
RESERVED_KEYS = {
    "seed": "; give seeds=[...]",
    "name": "",
    "output_dir": "; give root=...",
}  # keys that no override may set


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
    data_fingerprint: str = ""  # of what it trains on, once that is prepared
    feature_net: str = ""  # what it is scored on
    former: Mapping[str, str] = field(default_factory=dict)  # its identity under an older algorithm that did the same

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"

    @property
    def identity(self) -> dict[str, str]:
        """Tags that a run must have to be this trial: settings, seed, data and scoring networks."""
        return identity_tags(self.key, self.data_fingerprint, self.feature_net)


def identity_tags(key: str, data_fingerprint: str, feature_net: str) -> dict[str, str]:
    """Tags that make two runs the same: settings, seed and algorithm, content of the data, and what scores them."""
    tags = {
        Tag.TRIAL_KEY: key,
        Tag.DATA_FINGERPRINT: data_fingerprint,
        Tag.FEATURE_NET: feature_net,
    }
    return {name: value for name, value in tags.items() if value}


def folder_name(name: str, key: str, data_fingerprint: str) -> str:
    """A run's folder: its name, and a digest of settings and data, so that other data never meet its checkpoints."""
    return f"{name}-{hashlib.sha256(f'{key}/{data_fingerprint}'.encode()).hexdigest()[:8]}"


def plan_trials(study: Study, overrides: Sequence[str], complete: bool = True) -> list[Trial]:
    """All trials of `study`, all arms at the first seed before the next seed, the costliest arm of a seed first.

    `overrides` are the command line's and win over the arms. Where `complete` is false, paths that must be given may be
    absent: enough to plan. Raises ConfigError for an arm that is impossible, equal to another, or off what the study
    holds.
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
            params = {name: flat.get(name) for name in varying}  # a free key may be some arms' alone
            trials.append(Trial(study.name, study.scale, arm, seed, config, trial_key(config), params))
    return trials


def _plan_search(study: Study, overrides: Sequence[str], complete: bool) -> list[Trial]:
    """The places of a search, all with its base configuration: what varies is suggested when a worker takes one."""
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


def prepare_trials(trials: Sequence[Trial], root: Path, suffix: str = "") -> list[Trial]:
    """Encodes what the trials train on into the cache, checks all sizes against it, and gives each its folder.

    The folder's name holds a digest of settings and data, so that a run never goes on from a checkpoint that was
    trained on something else. Raises MicroditError for what no trial could start with.
    """
    from microdit.evaluation.report import feature_net_name
    from microdit.pipeline.train_and_evaluate import check_files, prepare

    for trial in trials:  # what the last one lacks is told before the first one's images are encoded
        check_files(trial.config)
    fingerprints: dict[object, tuple[str, str]] = {}
    ready = []
    for trial in trials:
        config = trial.config
        model = config.model
        sizes = (model.in_channels, model.input_size, model.caption_channels, config.evaluation.samples)
        shared = (config.data, config.autoencoder, config.text, config.alignment, model.side, *sizes)
        if shared not in fingerprints:
            components = prepare(config)
            fingerprints[shared] = components.data_fingerprint, components.train.fingerprint
        data, train_data = fingerprints[shared]
        name = folder_name(f"{trial.arm}-seed{trial.seed}", trial.key, data)
        folder = root / trial.study / trial.scale / f"{name}{suffix}"
        config = dataclasses.replace(config, output_dir=str(folder))
        net = feature_net_name(config.evaluation)
        former = _former_identity(config, train_data, net)
        ready.append(dataclasses.replace(trial, config=config, data_fingerprint=data, feature_net=net, former=former))
    return ready


def _former_identity(config: Config, train_data: str, feature_net: str) -> dict[str, str]:
    """Tags of a run of algorithm 1 that computed what `config` does now; {} if there can be none.

    Algorithm 1 named the data by its training split alone, which also fixes the other split of generated scenes and of
    encoded images, but not of a folder.
    """
    key = former_key(config)
    whole = config.data.name == "emoji-captions" or (config.data.name == "latents" and config.data.originals is None)
    return identity_tags(key, train_data, feature_net) if key is not None and whole else {}


def check_holds(study: Study, configs: Mapping[str, Config]) -> None:
    """Raises ConfigError naming arms and figures where the arms don't share what the study says they hold."""
    if study.file.holds in ("time", "nothing"):
        return  # time is known afterwards; the summary tells
    measure, what = HELD[study.file.holds]
    figures = {arm: measure(config) for arm, config in configs.items()}
    low, high = min(figures, key=figures.__getitem__), max(figures, key=figures.__getitem__)
    if figures[high] - figures[low] > TOLERANCE * figures[high]:
        raise ConfigError(
            f"{study.source}: the study holds {study.file.holds}, but arm '{low}' has {figures[low]:,} {what} and arm "
            f"'{high}' {figures[high]:,}"
        )


def varying_keys(configs: Sequence[Config]) -> list[str]:
    """Flattened keys whose values differ between configurations."""
    flat = [flatten(identity_mapping(config)) for config in configs]
    keys = sorted(set().union(*flat))
    return [key for key in keys if len({repr(values.get(key)) for values in flat}) > 1 and key != "seed"]


def _check_overrides(study: Study, overrides: Sequence[str], complete: bool) -> None:
    """A wrong word of the command line is called one, before it is laid over any arm."""
    for word in overrides:
        key = word.partition("=")[0]
        if key in RESERVED_KEYS:
            raise ConfigError(f"command line: a study sets '{key}' itself{RESERVED_KEYS[key]}")
    compose_mapping([f"scale={study.scale}", *overrides], complete=complete)


def arm_configs(study: Study, overrides: Sequence[str], complete: bool = True) -> dict[str, Config]:
    """The configuration of each arm, what it gives as `match` solved."""
    model = study.file.match or study.file.baseline
    base = _arm_config(study, model, overrides, complete) if model else None
    return {arm: _arm_config(study, arm, overrides, complete, base) for arm in study.arms}


def _arm_config(study: Study, arm: str, overrides: Sequence[str], complete: bool, base: Config | None = None) -> Config:
    source = f"{study.source}, arm '{arm}'"
    values = {**study.overrides, **study.arms[arm]}
    for key in values:
        if key in RESERVED_KEYS:
            raise ConfigError(f"{source}: '{key}' is not an arm's to set; seeds stand under 'seeds'")
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
                f"{study.source}: 'metrics.primary' is '{primary}', which arm '{arm}' won't have: the prompts of the "
                "file 'evaluation.prompts' have no classes"
            )
        if primary not in (*config.evaluation.metrics, FINAL_VAL_LOSS):
            hint = nearest(primary, (*config.evaluation.metrics, FINAL_VAL_LOSS))
            raise ConfigError(f"{study.source}: 'metrics.primary' is '{primary}', which arm '{arm}' won't have; {hint}")


def _reject_identical_arms(study: Study, configs: Mapping[str, Config]) -> None:
    seen: dict[str, str] = {}
    for arm, config in configs.items():
        key = trial_key(config)
        if key in seen:
            raise ConfigError(f"{study.source}: arms '{seen[key]}' and '{arm}' have the same settings")
        seen[key] = arm
