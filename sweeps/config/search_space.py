"""Build a search's space, sampler and pruner from a study's YAML, with Optuna's names.

search: {optimizer.weight_decay: {low: 1e-3, high: 0.3, log: true}, model.ffn.type: [swiglu, gelu]}
sampler: tpe                                 # or {type: tpe, multivariate: true}
pruner: {type: median, n_startup_trials: 3}  # compares val/loss at each validation
n_trials: 30
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from microdit.common.contract import DIRECTIONS, SearchRange
from microdit.common.errors import ConfigError, named, nearest, shown
from microdit.common.rng import derive_seed
from sweeps.config.hydra_compose import check_setting

SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
LARGEST_BOUND = 1e15  # of a range; integers up to it are exact as floats
RANGE = ("low", "high", "log", "step")
SEQUENTIAL_SAMPLER = "qmc"  # draws from one sequence, so all trials must use the same seed


def distribution(key: str, value: Any, source: str) -> BaseDistribution:
    """Return Optuna's distribution of a searched key.

    Args:
        key: dotted key, for messages.
        value: a list of choices, or a mapping with the keys of `RANGE`; bounds that are integers give integers.
        source: the study's file, for messages.

    Raises:
        ConfigError: if `value` is neither, or its bounds are invalid.
    """
    where = f"{source}: 'search.{key}'"
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{where}: it needs at least one value")
        choices: list[Any] = [tuple(v) if isinstance(v, list) else v for v in value]
        return CategoricalDistribution(choices)
    if not isinstance(value, Mapping) or not {"low", "high"} <= set(value):
        raise ConfigError(f"{where}: give a list of values, or {{low: ..., high: ..., log: true}}; got {shown(value)}")
    for name in value:
        if name not in RANGE:
            raise ConfigError(f"{where}: unknown key '{named(name)}'; {nearest(name, RANGE)}")
    low, high, step = value["low"], value["high"], value.get("step")
    bounds = (low, high) if step is None else (low, high, step)
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in bounds):
        got = ", ".join(shown(bound) for bound in bounds)
        raise ConfigError(f"{where}: 'low', 'high' and 'step' must be numbers (write 1.0e-3, not 1e-3), got {got}")
    if not all(math.isfinite(bound) and abs(bound) < LARGEST_BOUND for bound in bounds):
        raise ConfigError(f"{where}: 'low', 'high' and 'step' must be finite numbers below {LARGEST_BOUND:g}")
    try:
        found = SearchRange.of(value)
        return getattr(optuna.distributions, found.distribution)(**found.arguments)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def suggest(trial: optuna.Trial, space: Mapping[str, Any], source: str = "search") -> dict[str, Any]:
    """Return the trial's values by dotted key; tuples become lists.

    Args:
        trial: Optuna's trial.
        space: the study's `search`.
        source: the study's file, for messages.
    """
    values = {name: trial._suggest(name, distribution(name, value, source)) for name, value in space.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def build_sampler(setting: Any, seed: int, number: int, source: str) -> optuna.samplers.BaseSampler:
    """Return the sampler of a trial.

    Args:
        setting: the study's `sampler`: a name, or a mapping with `type` and the sampler's options.
        seed: random seed of the search.
        number: number of the trial, a part of the seed so that workers draw different points.
        source: the study's file, for messages.
    """
    name, options = _named(setting, SAMPLERS, "sampler", source)
    sequence = 0 if name == SEQUENTIAL_SAMPLER else number
    seeded = {"seed": derive_seed(seed, "sampler", sequence) % 2**31, **options}
    return _build(SAMPLERS[name], seeded, "sampler", source)


def build_pruner(setting: Any, source: str) -> optuna.pruners.BasePruner:
    """Return the pruner of a search.

    Args:
        setting: the study's `pruner`: a name, or a mapping with `type` and the pruner's options.
        source: the study's file, for messages.
    """
    name, options = _named(setting, PRUNERS, "pruner", source)
    return _build(PRUNERS[name], options, "pruner", source)


def _named(setting: Any, known: Mapping[str, type], role: str, source: str) -> tuple[str, dict[str, Any]]:
    options = dict(setting) if isinstance(setting, Mapping) else {"type": setting}
    name = options.pop("type", None)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{source}: '{role}' is {shown(name)}; {nearest(name, known)}")
    return str(name), options


def _build(kind: Any, options: Mapping[str, Any], role: str, source: str) -> Any:
    accepted = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    for name in options:
        if name not in accepted:
            raise ConfigError(
                f"{source}: '{role}.{name}' is not an option of {kind.__name__}; {nearest(name, accepted)}"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**options)
    except (ValueError, TypeError, ImportError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{source}: '{role}': {' '.join(str(error).split())}") from None


def check_search(file: Any, source: str) -> None:
    """Build the whole search once, before anything runs.

    Args:
        file: the study's keys (`sweeps.config.study.StudySpec`).
        source: the study's file, for messages.

    Raises:
        ConfigError: if the space, sampler, pruner or objectives are invalid.
    """
    for key, value in file.search.items():
        check_setting(key, source=f"{source}, search")
        distribution(key, value, source)
    if file.n_trials < 1:
        raise ConfigError(f"{source}: 'n_trials' is {file.n_trials}; a search needs at least 1")
    for name, direction in file.objectives.items():
        if direction not in DIRECTIONS:
            raise ConfigError(f"{source}: 'objectives.{name}' is {direction!r}; {nearest(direction, DIRECTIONS)}")
    build_sampler(file.sampler, 0, 0, source)
    build_pruner(file.pruner, source)
    name, _ = _named(file.pruner, PRUNERS, "pruner", source)
    if len(file.objectives) > 1 and name != "none":
        raise ConfigError(f"{source}: 'pruner' is '{name}', but Optuna prunes only searches of one objective")
