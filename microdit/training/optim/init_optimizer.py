"""Load the optimizer state of another run.

It is in that run's last checkpoint and is checked before any computation. Only moments and their step counts are
restored: learning rate, weight decay and all other settings are this run's own, and its schedule starts at step 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from microdit.common.errors import CheckpointError, ConfigError, listed
from microdit.common.parsing import read_yaml
from microdit.model import DiT
from microdit.training.checkpoint import read_checkpoint, stored_optimizer
from microdit.training.config import Recipe
from microdit.training.fsdp import load_optimizer
from microdit.training.init_weights import MAX_LISTED
from microdit.training.optim.optimizers import OPTIMIZERS
from microdit.training.run_files import INIT_KEY, OPTIMIZER_KEY, source_checkpoint
from microdit.training.stored_tensors import StoredTensor, TensorFiles

NET = "net."  # prefix of the network's parameters; others (such as an alignment's projector) start fresh


def check_initial_optimizer(config: Recipe) -> None:
    """Check that `training.init_optimizer` fits this run's optimizer.

    Only headers are read.

    Raises:
        ConfigError: if there is no such state, or it is of another type of optimizer.
        CheckpointError: if a file is damaged, or if names or shapes of parameters differ.
    """
    init = config.training.init
    if init is None or not config.training.init_optimizer:
        return
    folder = source_checkpoint(init)
    _check_type(config, Path(init).expanduser())
    stored = _by_name(stored_optimizer(TensorFiles(folder)), folder)
    with torch.device("meta"):
        net = DiT(config.model, seed=None)
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters() if parameter.requires_grad}
    problems = [f"{name} is only here" for name in shapes if name not in stored]
    problems += [f"{name} is only there" for name in stored if name not in shapes]
    for name, shape in shapes.items():
        for key, value in stored.get(name, {}).items():
            if config.optimizer.type in OPTIMIZERS and value.ndim and tuple(value.shape) != shape:
                problems.append(f"{key} of {name} is {tuple(value.shape)} there, and the parameter is {shape} here")
    if problems:
        raise CheckpointError(
            f"'{OPTIMIZER_KEY}': the optimizer's state in {folder} doesn't fit this run: {listed(problems, MAX_LISTED)}"
        )


def load_initial_optimizer(optimizer: torch.optim.Optimizer, init: str) -> None:
    """Load the stored state of every parameter of the network.

    Args:
        optimizer: built by `build_optimizer`; parameters outside the network keep a fresh state.
        init: `training.init`, the folder of a run.

    Raises:
        ConfigError: as `source_checkpoint`.
        CheckpointError: if the checkpoint is damaged or doesn't fit; `check_initial_optimizer` reports it earlier.
    """
    folder = source_checkpoint(init)
    stored = _by_name(read_checkpoint(folder).optimizer, folder)
    own = optimizer.state_dict()
    numbers = {
        name: number
        for group in own["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if name.startswith(NET)
    }
    if missing := [name for name in numbers if name.removeprefix(NET) not in stored]:
        raise CheckpointError(f"{folder}: has no optimizer state of {listed(missing, MAX_LISTED)}")
    own["state"] = {number: dict(stored[name.removeprefix(NET)]) for name, number in numbers.items()}
    load_optimizer(optimizer, own)


def _check_type(config: Recipe, run: Path) -> None:
    values = read_yaml(run / "config.yaml").get("optimizer")
    there = values.get("type", "adamw") if isinstance(values, Mapping) else "adamw"
    here = config.optimizer.type
    if there == here:
        return
    try:
        same = OPTIMIZERS.resolve(str(there)) is OPTIMIZERS.resolve(here)
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            f"'{OPTIMIZER_KEY}' is true, but '{INIT_KEY}' is a run with 'optimizer.type' {there}, and it is {here} "
            f"here; use the same, or set '{OPTIMIZER_KEY}' to false"
        )


def _by_name(state: Mapping[str, Any], folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """Return the state's tensors by parameter name, for the network's parameters."""
    found: dict[str, dict[str, StoredTensor]] = {}
    try:
        for group in state["param_groups"]:
            for name, number in zip(group["param_names"], group["params"], strict=True):
                kept = state["state"].get(number)
                if name.startswith(NET) and kept:
                    found[name.removeprefix(NET)] = dict(kept)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: the optimizer's state has no names of parameters ({error!r:.80}); "
            f"set '{OPTIMIZER_KEY}' to false"
        ) from None
    return found
