"""Identify a run by the settings, data and weights that define the experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from microdit.common.parsing import to_mapping
from microdit.config.presets import REQUIRED
from microdit.config.schema import Config
from microdit.encoders.pretrained_weights import weights_identity
from microdit.training.run_files import optimizer_digest, weights_digest

# Keys that don't change an experiment: where it writes, where it runs, how it reports.
EXCLUDED_FROM_KEY = (
    "name",
    "output_dir",
    "cache_dir",
    "cost.usd_per_hour",
    "training.device",
    "training.parallel",
    "training.activation_checkpointing",
    "training.threads",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "text.cache",
)

# Keys added after runs were recorded. With these values they are left out of the identity, so that the identities of
# recorded runs stay valid.
LATER_DEFAULTS: dict[str, Any] = {
    "text.length": None,
    "training.init": None,
    "training.init_optimizer": False,
    "training.draws": "host",
    "training.residual": "fp32",
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

# Version of what a run computes from its settings and data. If results change, raise it, describe the change in
# HISTORY, and let `former_keys` return the former identities of runs that compute the same up to rounding.
ALGORITHM = 3

HISTORY = {
    2: "the initialization of every network became the released model's",
    3: "patches are embedded by a linear, not a convolution, bf16 training on a CPU has its attention in fp32, and "
    "samples and distances are rounded differently",
}

NOT_PART_OF_TRAINING_KEY = ("sampler", "evaluation")  # groups that don't affect the weights


def identity_mapping(config: Config) -> dict[str, Any]:
    """Return the settings that identify an experiment: all but the volatile ones.

    Initial weights, the initial optimizer state and the alignment's weights are identified by content, not path.

    Raises:
        ConfigError: if a file of initial weights is missing.
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
    """Return the mapping that holds a dotted key, and the key's last part."""
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values[parent]
    return values, leaf


def trial_key(config: Config) -> str:
    """Return 16 hex digits that identify this experiment, including its seed.

    The settings of `EXCLUDED_FROM_KEY` don't affect them.

    Raises:
        ConfigError: if a file of initial weights is missing.
    """
    return _digest({"algorithm": ALGORITHM, **identity_mapping(config)})


def training_key(config: Config) -> str:
    """Return 16 hex digits that identify the trained weights.

    Settings of sampling and scoring are left out.

    Raises:
        ConfigError: if a file of initial weights is missing.
    """
    values = {name: value for name, value in identity_mapping(config).items() if name not in NOT_PART_OF_TRAINING_KEY}
    return _digest({"algorithm": ALGORITHM, **values})


def former_keys(config: Config) -> dict[int, str]:
    """Return the trial's keys under older algorithms whose runs remain valid.

    Algorithm 3 changed the rounding of fp32 training, as another machine would, but also the arithmetic of bf16
    training on CPUs. Algorithm 2 changed the initial weights, so runs of algorithm 1 remain valid only if all
    parameters start from stored weights.

    Returns:
        Keys by algorithm, newest first.
    """
    if config.training.precision != "fp32":
        return {}
    values = identity_mapping(config)
    aligned = config.alignment.encoder != "none" and config.alignment.weight
    keys = {2: _digest({"algorithm": 2, **values})}
    if config.training.init is not None and not aligned:
        keys[1] = _digest(values)  # algorithm 1 had no number
    return keys


def changes_since(algorithm: int) -> str:
    """Return what changed since an older algorithm.

    Args:
        algorithm: its number; `ALGORITHM` is the current one.

    Returns:
        The changes, joined by semicolons; "unknown" if none is recorded.
    """
    return "; ".join(text for version, text in sorted(HISTORY.items()) if version > algorithm) or "unknown"


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
