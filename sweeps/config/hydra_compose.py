"""Compose `experiments/` and overrides into a validated `Config` with Hydra; OmegaConf is used only here."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import accumulate
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from microdit.common.errors import MAX_VALUE_CHARACTERS, ConfigError, named, nearest, shown
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import OPTIONS_KEY, check_key, flatten
from microdit.config.presets import REQUIRED
from microdit.config.schema import Config, config_from_mapping
from microdit.config.sizes import follow_encoders
from microdit.data.latents.reader import settings_from_latents
from sweeps.config.override_quoting import as_value

GROUPS = ("data", "model", "scale", "recipe")
SCALE_FACTORS_KEY = "times"  # a recipe's factors on the scale's values
PRIMARY = "base"
SMALLEST_FACTOR = 1e-30  # besides 0; as an exact fraction, a huge exponent would take all memory
MAX_WORD_CHARACTERS = 10_000
MAX_BRACKETS = 64  # nested in one word


def compose_mapping(overrides: Sequence[str], source: str = "command line", complete: bool = True) -> dict[str, Any]:
    """Return the resolved settings as plain dicts.

    Args:
        overrides: `key=value` words; later ones take precedence.
        source: file or command line, for messages.
        complete: whether keys without a default must be given; otherwise they may remain REQUIRED.

    Raises:
        ConfigError: if a key or option does not exist; the message has `source` and the nearest name.
    """
    _check_options(overrides, source)
    if [word for word in overrides if word.partition("=")[0] not in GROUPS]:
        _check_keys(overrides, source)
    return _compose(tuple(overrides), source, complete)


def compose_config(overrides: Sequence[str], source: str = "command line") -> Config:
    """Return `compose_mapping` as a validated `Config`.

    Args:
        overrides: `key=value` words; later ones take precedence.
        source: file or command line, for messages.
    """
    return config_from_mapping(compose_mapping(overrides, source), source)


def as_override(key: str, value: Any) -> list[str]:
    """Return a YAML value as Hydra overrides.

    Args:
        key: dotted key.
        value: the value; a mapping becomes one override per leaf, so that its other keys keep their values.
    """
    if isinstance(value, Mapping):
        return [word for name, item in value.items() for word in as_override(f"{key}.{name}", item)]
    return [f"{key}={value if key in GROUPS else as_value(value)}"]


@contextmanager
def _as_config_error(source: str) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())[:400]}") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        fault = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ConfigError(f"{source}: a value can't be used ({fault})") from None
    except yaml.YAMLError as error:  # names its file
        raise ConfigError(f"{EXPERIMENTS}: not valid YAML: {' '.join(str(error).split())[:400]}") from None


def _composed(overrides: Sequence[str]) -> Any:
    GlobalHydra.instance().clear()
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        config = compose(PRIMARY, overrides=list(overrides))
    return _multiplied(config)


# Functions of other values that a YAML file may use; they are evaluated last.
RESOLVERS: dict[str, Callable[..., Any]] = {
    "choose": lambda value, when, then, otherwise: then if value == when else otherwise,
    "share": lambda share, steps: round(float(share) * int(steps)),
    "memory": lambda share, steps: (
        1 - 1 / max(float(share) * int(steps), 1)
    ),  # the decay of an average over share * steps
}


def _multiplied(config: Any) -> Any:
    """Apply the factors under `times`, each a number or a fraction such as 25/6, to the composed recipe.

    YAML alone cannot express "twice the scale's value", because a value must not refer to itself.
    """
    if SCALE_FACTORS_KEY not in config:
        return config
    OmegaConf.set_struct(config, False)
    for key, factor in config.pop(SCALE_FACTORS_KEY).items():
        value = OmegaConf.select(config, key)
        product = _fraction(value, key) * _fraction(factor, f"{SCALE_FACTORS_KEY}.{key}")
        whole = isinstance(value, int)
        OmegaConf.update(config, key, max(round(product), 1) if whole else float(product))
    OmegaConf.set_struct(config, True)
    return config


def _fraction(value: Any, key: str) -> Fraction:
    """Return a number or a text such as 25/6, exactly; raise ConfigError for anything else."""
    text = str(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    parts = text.split("/") if len(text) <= MAX_VALUE_CHARACTERS else []
    with contextlib.suppress(ValueError, ZeroDivisionError):
        if 1 <= len(parts) <= 2 and all(
            SMALLEST_FACTOR < abs(float(part)) < 1 / SMALLEST_FACTOR or not float(part) for part in parts
        ):
            return Fraction(text)
    raise ConfigError(f"'{key}' is {shown(value)}; it must be a finite number or a fraction such as 25/6")


@cache
def _composed_groups(groups: tuple[str, ...]) -> Any:
    """Return the recipe with a choice of `GROUPS`, cached because reading the files takes most of Hydra's time."""
    return _composed(groups)


def _compose(overrides: tuple[str, ...], source: str, complete: bool) -> dict[str, Any]:
    groups = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    with _as_config_error(source):
        config = copy.deepcopy(_composed_groups(groups))
        usual = config.data.resolution // config.model.input_size  # the autoencoder's factor that the scale assumes
        for override in parse_words([word for word in overrides if word not in groups], source):
            key = override.key_or_group
            # As in Hydra, a mapping is merged and a list is replaced. A plugin class defines the keys of its options.
            OmegaConf.update(config, key, override.value(), force_add=OPTIONS_KEY in key.split(".")[:-1])
        given = {word.partition("=")[0] for word in overrides}
        _follow_data(config, given)
        values: Any = OmegaConf.to_container(config, resolve=True)
    follow_encoders(values, given, usual)
    missing = [key for key, value in flatten(values, empty=True).items() if value == REQUIRED]
    if missing and complete:
        raise ConfigError(f"{source}: no default here for {', '.join(missing)}; give {missing[0]}=...")
    return values


def _follow_data(config: Any, given: Collection[str]) -> None:
    """Set the sizes that precomputed latents state, unless they are given; the scale's own sizes are of images."""
    if config.data.name != "latents" or config.data.path in (None, REQUIRED):
        return
    for key, value in settings_from_latents(config.data.path).items():
        if key not in given:
            OmegaConf.update(config, key, value)


@cache
def _known_keys(groups: tuple[str, ...]) -> Mapping[str, Any]:
    with _as_config_error("experiments"):
        values: Any = OmegaConf.to_container(_composed_groups(groups), resolve=False)
    return values


def parse_words(words: Sequence[str], source: str) -> list[Override]:
    """Return the parsed form of `key=value` words.

    Args:
        words: the words in Hydra's grammar.
        source: file or command line, for messages.

    Raises:
        ConfigError: if a word is invalid, too long or nested too deeply.
    """
    found = []
    for word in words:
        depth = max(accumulate((c in "[{(") - (c in "]})") for c in word), default=0)
        if len(word) > MAX_WORD_CHARACTERS or depth > MAX_BRACKETS:
            fault = "is nested too deeply" if depth > MAX_BRACKETS else f"has {len(word):,} characters"
            raise ConfigError(f"{source}: '{named(word)}' {fault}")
        with _as_config_error(f"{source}: '{named(word)}'"):
            found += _parser().parse_overrides([word])
    return found


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _check_options(overrides: Sequence[str], source: str) -> None:
    for word in overrides:
        group, sep, option = word.partition("=")
        if not sep:
            raise ConfigError(f"{source}: '{named(word)}' is not of the form key=value")
        if group in GROUPS and option not in group_options(group):
            raise ConfigError(
                f"{source}: there is no {group} '{named(option)}'; {nearest(option, group_options(group))}"
            )


def _check_keys(overrides: Sequence[str], source: str) -> None:
    groups = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    known = _known_keys(groups)
    for override in parse_words(overrides, source):
        key = override.key_or_group
        if key in GROUPS:
            continue
        if override.is_add() or override.is_delete():
            raise ConfigError(f"{source}: '{named(override.input_line)}': keys can't be added or removed, only set")
        check_key(key, known, source)


def check_setting(key: str, source: str) -> None:
    """Check that a dotted key is a setting of the default recipe.

    Args:
        key: the key.
        source: file or command line, for messages.

    Raises:
        ConfigError: if it is not; the message has the nearest name.
    """
    check_key(key, _known_keys(()), source)
