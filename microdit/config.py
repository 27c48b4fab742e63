"""One run, completely described: the root of the frozen configuration tree.

Every component declares its own dataclass; this file only gathers them. `experiments/base.yaml` holds every key with a
comment, and a stored `config.yaml` needs nothing but this module to run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.encoders import encoder_class
from microdit.config_io import check_finite, parse, read_yaml, to_mapping
from microdit.data.base import DataConfig
from microdit.diffusion.edm import DiffusionConfig
from microdit.diffusion.samplers import SamplerConfig
from microdit.encoders.autoencoder import AutoencoderConfig
from microdit.encoders.text import TextConfig
from microdit.errors import ConfigError
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.weights import weights_identity
from microdit.files import write_text
from microdit.footprint import check_footprint
from microdit.limits import check_limits, check_path
from microdit.model import DiTConfig
from microdit.roles import allow_plugins, resolve
from microdit.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from microdit.training.initial import weights_digest
from microdit.training.initial_optimizer import optimizer_digest
from microdit.training.optim import OPTIMIZERS

# Keys that may differ between two runs that are the same experiment: where it writes, where it runs, how it reports.
VOLATILE = (
    "name",
    "output_dir",
    "cache_dir",
    "cost.usd_per_hour",
    "training.device",
    "training.parallel",
    "training.threads",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "text.cache",
)

# Keys that came after runs were recorded: left out where they say what those runs did, so that their keys still stand.
ADDED = {
    "text.length": None,
    "training.init": None,
    "training.init_optimizer": False,
    "data.originals": None,
    "autoencoder.precision": "fp32",
    "model.masking.route.path_drop": 0.0,
    "sampler.guidance_by": "caption",
    "alignment.weights": None,
}
# The version of what a run computes from its settings and data. Raise it when results change; say in HISTORY what
# changed, and in `former_key` which runs stay what they were.
ALGORITHM = 2
HISTORY = {2: "the initialization of every network became the released model's"}
# Stands where a value must be given; a plan is made without it. Not OmegaConf's ???, which a merge drops in silence
# where the key has a value already.
REQUIRED = "REQUIRED"

PATHS = (
    "name",
    "output_dir",
    "cache_dir",
    "data.path",
    "data.originals",
    "autoencoder.path",
    "text.path",
    "training.init",
    "evaluation.prompts",
    "evaluation.clip",
    "evaluation.feature_weights",
    "alignment.weights",
)

AFTERWARDS = ("sampler", "evaluation")  # groups that have no say in what is learnt


@dataclass(frozen=True)
class CostConfig:
    """What an hour of the machine costs, for `cost/usd`; 0 where it is not accounted."""

    usd_per_hour: float = 0.0

    def __post_init__(self) -> None:
        check_limits("cost", self, usd_per_hour=1e9)


@dataclass(frozen=True)
class Config:
    """The whole recipe of one run; see `experiments/base.yaml` for each key's meaning."""

    name: str
    seed: int
    output_dir: str
    cache_dir: str
    plugins: tuple[str, ...]
    data: DataConfig
    autoencoder: AutoencoderConfig
    text: TextConfig
    model: DiTConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    sampler: SamplerConfig
    evaluation: EvalConfig
    cost: CostConfig
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        for key in PATHS:
            value: Any = self
            for name in key.split("."):
                value = getattr(value, name)
            check_path(key, value)
        check_footprint(self.model, self.data.resolution, self.training.batch_size)
        allow_plugins(self.plugins)
        resolve(self.optimizer.type, OPTIMIZERS, "optimizer.type")  # a wrong name costs nothing here
        encoder_class(self.alignment)
        self.alignment.block_of(self.model.depth)
        if self.training.parallel == "fsdp" and self.optimizer.type == "muon":
            raise ConfigError(
                "'optimizer.type' is muon, which needs whole matrices: 'training.parallel' must be ddp, not fsdp"
            )
        if self.schedule.warmup_steps > self.training.steps:
            raise ConfigError(
                f"'schedule.warmup_steps' is {self.schedule.warmup_steps}, more than 'training.steps' "
                f"({self.training.steps}): the learning rate would never reach its peak"
            )
        if self.training.ema.decay and self.training.ema.start_step >= self.training.steps:
            raise ConfigError(
                f"'training.ema.start_step' is {self.training.ema.start_step}, but 'training.steps' is only "
                f"{self.training.steps}: the average would never start"
            )
        self._check_guidance()

    def _check_guidance(self) -> None:
        of_scores = self.evaluation.guidance
        guided = self.sampler.guidance != 1 or (of_scores is not None and of_scores != 1)
        if not guided and not self.sampler.guidance_interval.everywhere:
            raise ConfigError(
                "'sampler.guidance_interval' is set, but 'sampler.guidance' is 1: there is no guidance to limit"
            )
        if self.sampler.guidance_by == "caption":
            return
        if not guided:
            raise ConfigError(f"'sampler.guidance_by' is {self.sampler.guidance_by}, but 'sampler.guidance' is 1")
        if not self.model.masking.route.path_drop:
            raise ConfigError(
                f"'sampler.guidance_by' is {self.sampler.guidance_by}, but 'model.masking.route.path_drop' is 0: the "
                "network never learns to do without its middle blocks; train method sprint with 0.1, say, or set it to "
                "caption"
            )


def config_from_mapping(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validates a resolved mapping; raises ConfigError naming `source` and the key."""
    return parse(Config, values, source)


def load_config(path: Path | str) -> Config:
    """Reads a complete `config.yaml`, as every run stores one."""
    return config_from_mapping(read_yaml(path), str(path))


def save_config(config: Config, path: Path | str) -> None:
    """Writes a `config.yaml` that `load_config` and `microdit train` read."""
    write_text(path, yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))


def stable_mapping(config: Config) -> dict[str, Any]:
    """The configuration without its volatile keys: what makes two runs the same experiment.

    Initial weights, the initial optimizer state and the alignment's weights are identified by content, not path.

    Raises:
        ConfigError: if the initial ones are missing.
    """
    values = to_mapping(config)
    for key in VOLATILE:
        node, leaf = _owner(values, key)
        node.pop(leaf)
    for key, default in ADDED.items():
        node, leaf = _owner(values, key)
        if node[leaf] == default:
            node.pop(leaf)
    init = values["training"].get("init")
    if init not in (None, REQUIRED):
        values["training"]["init"] = weights_digest(init)
        if config.training.init_optimizer:
            values["training"]["init_optimizer"] = optimizer_digest(init)
    weights = config.alignment.weights
    if weights is not None:
        values["alignment"]["weights"] = weights_identity(weights)
    return values


def _owner(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted key, and the key's last word."""
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values[parent]
    return values, leaf


def trial_key(config: Config) -> str:
    """16 hex digits that name this experiment, its seed included (see `VOLATILE` for what is left out)."""
    return _digest({"algorithm": ALGORITHM, **stable_mapping(config)})


def training_key(config: Config) -> str:
    """The same of what decides the weights: how they are sampled and scored is left out."""
    values = {name: value for name, value in stable_mapping(config).items() if name not in AFTERWARDS}
    return _digest({"algorithm": ALGORITHM, **values})


def former_key(config: Config) -> str | None:
    """The trial's key under algorithm 1 if the same settings mean the same there, else None."""
    return _digest(stable_mapping(config)) if _unchanged(config) else None


def changes_since(algorithm: int) -> str:
    """What distinguishes the runs of an older algorithm from those of this one."""
    return "; ".join(words for version, words in sorted(HISTORY.items()) if version > algorithm) or "unknown"


def _unchanged(config: Config) -> bool:
    """Whether algorithm 1 computed the same: no parameter is initialized, since all start from stored weights."""
    aligned = config.alignment.encoder != "none" and config.alignment.weight
    return config.training.init is not None and not aligned


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
