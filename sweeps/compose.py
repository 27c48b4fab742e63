"""From `experiments/` and overrides to a validated `Config`, through Hydra; no OmegaConf leaves this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from microdit.config import Config, config_from_mapping
from microdit.errors import ConfigError, nearest

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
GROUPS = ("data", "model", "scale")
PRIMARY = "base"


def group_options(group: str) -> list[str]:
    """The files of a config group, by name."""
    return sorted(path.stem for path in (EXPERIMENTS / group).glob("*.yaml"))


def compose_mapping(overrides: Sequence[str], source: str = "command line") -> dict[str, Any]:
    """The resolved settings under `overrides` (`key=value`, later ones win), as plain dicts.

    Raises ConfigError naming `source`, the key or option that doesn't exist, and the nearest that does.
    """
    _check_options(overrides, source)
    if [word for word in overrides if word.partition("=")[0] not in GROUPS]:
        _check_keys(overrides, source)
    return _compose(tuple(overrides), source)


def compose_config(overrides: Sequence[str], source: str = "command line") -> Config:
    """The same as a validated `Config`."""
    return config_from_mapping(compose_mapping(overrides, source), source)


def as_override(key: str, value: Any) -> list[str]:
    """A YAML value as Hydra overrides; a mapping becomes one override per leaf, so that its other keys stay."""
    if isinstance(value, Mapping):
        return [word for name, item in value.items() for word in as_override(f"{key}.{name}", item)]
    return [f"{key}={value if key in GROUPS else json.dumps(value)}"]


def _compose(overrides: tuple[str, ...], source: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
            composed = compose(PRIMARY, overrides=list(overrides))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"{source}: '{missing[0]}' has no default here; give it, as {missing[0]}=...")
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())[:400]}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@cache
def _known_keys(groups: tuple[str, ...]) -> Mapping[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        values = OmegaConf.to_container(compose(PRIMARY, overrides=list(groups)), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _check_options(overrides: Sequence[str], source: str) -> None:
    for word in overrides:
        group, sep, option = word.partition("=")
        if not sep:
            raise ConfigError(f"{source}: '{word}' is not of the form key=value")
        if group in GROUPS and option not in group_options(group):
            raise ConfigError(f"{source}: there is no {group} '{option}'; {nearest(option, group_options(group))}")


def _check_keys(overrides: Sequence[str], source: str) -> None:
    groups = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    known = _known_keys(groups)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())[:300]}") from None
    for override in parsed:
        key = override.key_or_group
        if key in GROUPS:
            continue
        if override.is_add() or override.is_delete():
            raise ConfigError(f"{source}: '{override.input_line}': keys can't be added or removed, only set")
        node: Any = known
        for depth, part in enumerate(key.split(".")):
            if not isinstance(node, Mapping) or part not in node:
                parents = ".".join(key.split(".")[:depth])
                choices = [f"{parents}.{name}" if parents else name for name in node] if isinstance(node, dict) else []
                raise ConfigError(f"{source}: unknown key '{key}'; {nearest(key, choices or _leaves(known))}")
            node = node[part]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [f"{prefix}{name}"]
    return keys
