"""The identity of a run: which settings, data and weights make two runs the same experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from microdit.common.parsing import to_mapping
from microdit.config.presets import REQUIRED
from microdit.config.schema import Config
from microdit.encoders.pretrained_weights import weights_identity
from microdit.training.init_optimizer import optimizer_digest
from microdit.training.init_weights import weights_digest

# Keys that may differ between two runs that are the same experiment: where it writes, where it runs, how it reports.
EXCLUDED_FROM_KEY = (
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
LATER_DEFAULTS: dict[str, Any] = {
    "text.length": None,
    "training.init": None,
    "training.init_optimizer": False,
    "data.originals": None,
    "autoencoder.precision": "fp32",
    "model.masking.route.path_drop": 0.0,
    "sampler.guidance_by": "caption",
    "alignment.weights": None,
    "text.encoder": None,
    "diffusion.objective": "edm",
    "diffusion.distribution": "lognormal",
    "diffusion.options": {},
    "model.mixer.type": "transformer",
    "model.mixer.options": {},
    "optimizer.options": {},
    "schedule.options": {},
    "sampler.schedule": "karras",
    "sampler.options": {},
}

# The version of what a run computes from its settings and data. Raise it when results change; say in HISTORY what
# changed, and in `former_key` which runs stay what they were.
ALGORITHM = 2

HISTORY = {2: "the initialization of every network became the released model's"}

NOT_PART_OF_TRAINING_KEY = ("sampler", "evaluation")  # groups that have no say in what is learnt


def identity_mapping(config: Config) -> dict[str, Any]:
    """The configuration without its volatile keys: what makes two runs the same experiment.

    Initial weights, the initial optimizer state and the alignment's weights are identified by content, not path.

    Raises:
        ConfigError: if the initial ones are missing.
    """
    values = to_mapping(config)
    for key in EXCLUDED_FROM_KEY:
        node, leaf = _owner(values, key)
        node.pop(leaf)
    for key, default in LATER_DEFAULTS.items():
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
    """16 hex digits that name this experiment, its seed included (see `EXCLUDED_FROM_KEY` for what is left out)."""
    return _digest({"algorithm": ALGORITHM, **identity_mapping(config)})


def training_key(config: Config) -> str:
    """The same of what decides the weights: how they are sampled and scored is left out."""
    values = {name: value for name, value in identity_mapping(config).items() if name not in NOT_PART_OF_TRAINING_KEY}
    return _digest({"algorithm": ALGORITHM, **values})


def former_key(config: Config) -> str | None:
    """The trial's key under algorithm 1 if the same settings mean the same there, else None."""
    return _digest(identity_mapping(config)) if _unchanged(config) else None


def changes_since(algorithm: int) -> str:
    """What distinguishes the runs of an older algorithm from those of this one."""
    return "; ".join(words for version, words in sorted(HISTORY.items()) if version > algorithm) or "unknown"


def _unchanged(config: Config) -> bool:
    """Whether algorithm 1 computed the same: no parameter is initialized, since all start from stored weights."""
    aligned = config.alignment.encoder != "none" and config.alignment.weight
    return config.training.init is not None and not aligned


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
