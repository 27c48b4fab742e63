"""Solve values given as `match`, so that the arm has the same budget as the baseline."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from microdit.common.errors import ConfigError
from microdit.common.parsing import assign
from microdit.config.schema import Config, config_from_mapping
from microdit.model.cost import network as cost
from microdit.pipeline.cost import training_flops
from sweeps.planning.throughput_cache import training_seconds

MATCH = "match"
STEP = 1000  # ratios are solved in thousandths
MAX_SOLVED = 2**32

Measure = Callable[[Config], float]

# Budgets that a study can hold fixed: a function of the configuration, and a name.
HELD: dict[str, tuple[Measure, str]] = {
    "steps": (lambda c: c.training.steps * c.training.batch_size, "images seen (steps x batch)"),
    "params": (lambda c: cost.parameters(c.model), "parameters"),
    "active_params": (lambda c: cost.active_parameters(c.model), "active parameters"),
    "flops": (training_flops, "training FLOPs"),
    "time": (training_seconds, "seconds of training"),
}


def matched_keys(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose value is `match`.

    Args:
        overrides: values by dotted key; mappings are searched at any depth.
        prefix: dotted path of `overrides`, with a dot at the end, or "".
    """
    found = []
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            found += matched_keys(value, f"{prefix}{key}.")
        elif value == MATCH:
            found.append(f"{prefix}{key}")
    return found


def solve(
    mapping: Mapping[str, Any], keys: Sequence[str], measure: Measure, wanted: float, source: str
) -> dict[str, Any]:
    """Return a configuration whose value at `keys` comes nearest to a budget.

    Integers stay integers; other numbers have three decimals.

    Args:
        mapping: a complete configuration with numbers at `keys`.
        keys: dotted keys, which all get the same value.
        measure: returns a configuration's budget, which must not decrease as the value grows.
        wanted: the budget.
        source: file and arm, for messages.

    Raises:
        ConfigError: if no value gives a valid configuration.
    """
    whole = all(isinstance(_get(mapping, key), int) for key in keys)

    def at(number: int) -> dict[str, Any]:
        values = copy.deepcopy(dict(mapping))
        for key in keys:
            assign(values, key, number if whole else number / STEP)
        return values

    def amount(number: int) -> float:
        try:
            return measure(config_from_mapping(at(number), source))
        except ConfigError:
            return -math.inf  # invalid, such as fewer steps than the warmup

    start = _get(mapping, keys[0])
    low, high = _bracket(amount, start if whole else round(start * STEP), wanted)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if amount(middle) < wanted else (low, middle)
    best = min(low, high, key=lambda number: abs(amount(number) - wanted))
    if not math.isfinite(amount(best)):
        raise ConfigError(f"{source}: no value of '{keys[0]}' gives this arm the budget of the others")
    return at(best)


def _bracket(amount: Callable[[int], float], start: int, wanted: float) -> tuple[int, int]:
    """Return a number that gives less than `wanted` (or 0), and a larger one that gives at least as much."""
    high = max(start, 1)
    while amount(high) < wanted and high < MAX_SOLVED:
        high *= 2
    low = high
    while low and amount(low) >= wanted:
        high, low = low, low // 2
    return low, high


def _get(mapping: Mapping[str, Any], key: str) -> Any:
    node: Any = mapping
    for part in key.split("."):
        node = node[part]
    return node
