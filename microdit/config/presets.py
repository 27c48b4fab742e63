"""Load named recipes without Hydra.

A recipe is the defaults, one file of `experiments/scale/`, and `key=value` overrides. `microdit-sweep` composes the
same files through Hydra; a test keeps both results equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from microdit.common.errors import ConfigError, nearest
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import assign, flatten, override, read_yaml
from microdit.config.sizes import follow_encoders
from microdit.data.latents.reader import settings_from_latents

# Marks a value that must be given. OmegaConf's ??? won't do: a merge ignores it if the key already has a value.
REQUIRED = "REQUIRED"

DEFAULTS_LIST = "defaults"  # Hydra's list of further files
_GROUP_OVERRIDE = re.compile(r"override /(\w+)")
_CHOICE = re.compile(r"\$\{choose:\$\{([\w.]+)\},(\w+),(\w+),(\w+)\}")  # (key, value, if equal, otherwise)


def preset_names() -> list[str]:
    """Return the names of the recipes: the files of `experiments/scale/`."""
    return group_options("scale")


def apply_preset(values: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> None:
    """Apply a named recipe and `key=value` overrides to settings in place.

    Network sizes that are not set follow from the data and the encoders.

    Args:
        values: the defaults, a complete nested mapping; changed in place.
        name: one of `preset_names`.
        overrides: such as "training.steps=20"; later ones win.

    Raises:
        ConfigError: if the name or a key is unknown, or a value that has no default is missing.
    """
    source = f"preset '{name}'"
    _merge(values, _read_preset(name), source)
    factor = values["data"]["resolution"] // values["model"]["input_size"]
    given = override(values, overrides, source)
    if "name" in given and "output_dir" not in given:
        values["output_dir"] = f"runs/{values['name']}"
    if values["data"]["name"] == "latents" and values["data"]["path"] not in (None, REQUIRED):
        for key, value in settings_from_latents(values["data"]["path"]).items():
            if key not in given:
                assign(values, key, value)
    flat = flatten(values, empty=True)
    for key, value in flat.items():
        if isinstance(value, str) and (choice := _CHOICE.fullmatch(value)):
            other, wanted, then, otherwise = choice.groups()
            assign(values, key, then if str(flat[other]) == wanted else otherwise)
    follow_encoders(values, given, factor)
    missing = [key for key, value in flatten(values, empty=True).items() if value == REQUIRED]
    if missing:
        raise ConfigError(f"{source}: no default for {', '.join(missing)}; add '{missing[0]}=...' to the overrides")


def _read_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise ConfigError(f"there is no preset '{name}'; {nearest(name, preset_names())}")
    values = read_yaml(EXPERIMENTS / "scale" / f"{name}.yaml")
    base: dict[str, Any] = {}
    for entry in values.pop(DEFAULTS_LIST, []):  # such as {"override /data": "folder"}
        for words, option in entry.items():
            group = _GROUP_OVERRIDE.fullmatch(words)
            if group is None:
                raise ConfigError(f"experiments/scale/{name}.yaml: '{words}' is not of the form 'override /GROUP'")
            base[group[1]] = read_yaml(EXPERIMENTS / group[1] / f"{option}.yaml")
    _merge(base, values, name, strict=False)
    return base


def _merge(
    values: dict[str, Any], changes: Mapping[str, Any], source: str, strict: bool = True, path: str = ""
) -> None:
    """Merge nested `changes` into `values` in place.

    If `strict`, only existing keys may be set.
    """
    for key, value in changes.items():
        dotted = f"{path}.{key}" if path else key
        if strict and key not in values and not path.endswith(".options"):
            raise ConfigError(f"{source}: unknown key '{dotted}'; {nearest(key, values)}")
        if isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value, source, strict, dotted)
        else:
            values[key] = value
