"""Read a study: one YAML file with a question, what varies, and what all arms hold fixed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from microdit.common.contract import COST_PREFIX, DEFAULT_PRIMARY, SECONDS, USD, StudyKey
from microdit.common.errors import ConfigError, named, nearest, shown
from microdit.common.files.paths import EXPERIMENTS, group_options
from microdit.common.parsing import parse, read_yaml, to_mapping
from microdit.common.stores.claims import parse_claim
from microdit.pipeline.cost import COST_METRICS
from sweeps import config
from sweeps.config.hydra_compose import check_setting

MAX_ARMS = 100_000
STORED_KEYS = (  # of a study's YAML, in study.yaml of a launch
    StudyKey.QUESTION,
    StudyKey.PAPER,
    StudyKey.BASELINE,
    StudyKey.HOLDS,
    StudyKey.CUMULATIVE,
    StudyKey.DIVERGENCE,
    StudyKey.SEARCH,
    StudyKey.OBJECTIVES,
    StudyKey.METRICS,
    StudyKey.FIGURE,
    StudyKey.CLAIMS,
)
COST_AXES = tuple(COST_PREFIX + name for name in COST_METRICS)  # axes of a figure besides settings


@dataclass(frozen=True)
class PaperClaim:
    """The paper's claim and its section."""

    section: str = ""
    claim: str = ""


@dataclass(frozen=True)
class Metrics:
    """The primary metric and its direction."""

    primary: str = DEFAULT_PRIMARY
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Figure:
    """The figure's x axis and the setting that separates its lines."""

    x: str = ""
    hue: str = ""


@dataclass(frozen=True)
class ScaleChoice:
    """A scale's selection of a study's arms, and its own values."""

    arms: tuple[str, ...] | None = None
    axes: Mapping[str, Any] = field(default_factory=dict)  # other values for an axis
    baseline: str = ""  # if the study's own is not among the arms
    seeds: tuple[int, ...] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudySpec:
    """The keys of a study's YAML."""

    question: str
    paper: PaperClaim = PaperClaim()
    arms: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of every arm
    search: Mapping[str, Any] = field(default_factory=dict)  # instead of arms and axes; see sweeps.config.search_space
    sampler: Any = "tpe"
    pruner: Any = "none"
    n_trials: int = 0  # of a search
    objectives: Mapping[str, Any] = field(default_factory=dict)  # of a search: metric -> direction; empty: the primary
    baseline: str = ""
    match: str = ""  # the arm that values of `match` are solved for; empty: the baseline
    holds: Literal["steps", "flops", "params", "active_params", "time", "nothing"] = "steps"
    cumulative: bool = False  # each arm builds on the one above it
    divergence: Literal["failure", "data"] = "failure"  # "data": a diverged run is a result
    seeds: tuple[int, ...] = (0, 1, 2)
    metrics: Metrics = Metrics()
    figure: Figure = Figure()
    claims: tuple[Any, ...] = ()  # what the study expects of its arms; see microdit.common.stores.claims
    scales: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study at one scale: named arms, each with its overrides."""

    name: str
    scale: str
    source: str
    file: StudySpec
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]

    def as_mapping(self) -> dict[str, Any]:
        """Return the study for the analysis, stored as study.yaml of the parent run."""
        stored = to_mapping(self.file)
        return {
            StudyKey.NAME: self.name,
            StudyKey.SCALE: self.scale,
            **{key: stored[key] for key in STORED_KEYS},
            StudyKey.ARMS: {name: dict(overrides) for name, overrides in self.arms.items()},
            StudyKey.SEEDS: list(self.seeds),
            StudyKey.PLUGINS: _plugins(self.overrides),
        }


def study_names() -> list[str]:
    """Return the names of the bundled studies."""
    return group_options("study")


def load_study(name: str, scale: str, seeds: tuple[int, ...] | None = None) -> Study:
    """Load a study and narrow it to a scale.

    Args:
        name: a bundled study, or a path that ends in .yaml or .yml.
        scale: a scale of experiments/scale.
        seeds: seeds instead of the study's own.

    Returns:
        The study with the arms, seeds and overrides of this scale.

    Raises:
        ConfigError: if the file is missing or invalid; the message has the file, the key and the nearest name.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else EXPERIMENTS / "study" / f"{name}.yaml"
    if not os.path.isfile(path) and path.parent == EXPERIMENTS / "study":
        raise ConfigError(
            f"there is no study '{named(name)}'; {nearest(name, study_names())}, or give a path ending in .yaml"
        )
    source = str(path)
    file = parse(StudySpec, read_yaml(path), source)
    choice = _scale_choice(file, scale, source)
    file = _narrowed(file, choice, scale, source)
    arms = _expand(file, source)
    if file.search:
        config.check_search(file, source)
    if choice.arms is not None:
        for arm in choice.arms:
            if arm not in arms:
                raise ConfigError(f"{source}: 'scales.{scale}.arms' names '{arm}'; {nearest(arm, arms)}")
        arms = {arm: arms[arm] for arm in choice.arms}
    for key, arm in (("baseline", file.baseline), ("match", file.match)):
        if arm and arm not in arms:
            where = f" at scale {scale}" if choice.arms is not None else ""
            raise ConfigError(f"{source}: '{key}' is '{arm}', which is not an arm{where}; {nearest(arm, arms)}")
    for axis in (file.figure.x, file.figure.hue):
        if axis not in ("", "arm", *COST_AXES):
            check_setting(axis, source=f"{source}, figure")
    overrides = {**file.overrides, **choice.overrides}
    _check_claims(file, overrides, source)
    chosen = seeds or (file.seeds if choice.seeds is None else choice.seeds)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise ConfigError(f"{source}: 'seeds' is {list(chosen)}; give whole numbers from 0, each once, at least one")
    if file.search and len(chosen) > 1:
        raise ConfigError(f"{source}: a search tries each point at one seed; give seeds: [{chosen[0]}]")
    return Study(path.stem, scale, source, file, arms, chosen, overrides)


def _check_claims(file: StudySpec, overrides: Mapping[str, Any], source: str) -> None:
    for number, values in enumerate(file.claims):
        place = f"{source}, claims[{number}]"
        claim = parse_claim(values, place, own=True)
        if claim.has_own_kind and not any(claim.kind.startswith(f"{name}.") for name in _plugins(overrides)):
            module = claim.kind.rpartition(".")[0]
            raise ConfigError(f"{place}: 'kind' is '{claim.kind}'; list its module '{module}' in 'overrides.plugins'")
        for key in claim.setting_keys:
            if key not in ("arm", *COST_AXES, SECONDS, USD):
                check_setting(re.sub(r"\.\d+$", "", key), source=place)  # `some.list.1` is an element of a list


def _plugins(overrides: Mapping[str, Any]) -> list[str]:
    """Return the modules that the study lists; the trial's configuration checks the value."""
    value = overrides.get("plugins")
    return [str(name) for name in value] if isinstance(value, list | tuple) else []


def _scale_choice(file: StudySpec, scale: str, source: str) -> ScaleChoice:
    known = group_options("scale")
    for name in file.scales:
        if name not in known:
            raise ConfigError(f"{source}: 'scales.{name}' is not a scale; {nearest(name, known)}")
    return parse(ScaleChoice, file.scales.get(scale) or {}, source, f"scales.{scale}")


def _narrowed(file: StudySpec, choice: ScaleChoice, scale: str, source: str) -> StudySpec:
    """Return the study with the scale's values of its axes."""
    for key in choice.axes:
        if key not in file.axes:
            hint = nearest(key, file.axes)
            raise ConfigError(f"{source}: 'scales.{scale}.axes' has '{key}', which is not an axis; {hint}")
    return dataclasses.replace(file, axes={**file.axes, **choice.axes}, baseline=choice.baseline or file.baseline)


def _expand(file: StudySpec, source: str) -> dict[str, dict[str, Any]]:
    """Return the product of the named arms and the grid of the axes."""
    for key, values in file.axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{source}: axis '{key}' must be a list of at least one value, got {shown(values)}")
        repeated = [value for i, value in enumerate(values) if value in values[:i]]
        if repeated:
            raise ConfigError(f"{source}: axis '{key}' has {shown(repeated[0])} twice")
    for name, overrides in file.arms.items():
        if not isinstance(overrides, Mapping):
            raise ConfigError(f"{source}: arm '{name}' must be a mapping of keys to values ({{}} for none)")
        if not re.fullmatch(r"[\w.+-]{1,100}", str(name)):
            raise ConfigError(
                f"{source}: arm '{named(name)}': only up to 100 letters, digits, '_', '-', '+' and '.' make a name"
            )
        both = sorted(set(overrides) & set(file.axes))
        if both:
            raise ConfigError(f"{source}: '{both[0]}' is set by arm '{name}' and is an axis; it can't be both")
    if file.search and (file.arms or file.axes):
        raise ConfigError(f"{source}: a study has either 'search' or 'arms' and 'axes'")
    if file.search and file.n_trials > MAX_ARMS:
        raise ConfigError(f"{source}: 'n_trials' is {file.n_trials:,}; a study has at most {MAX_ARMS:,}")
    if file.search:
        return {f"trial_{number:03d}": {} for number in range(file.n_trials)}
    if not file.arms and not file.axes:
        raise ConfigError(f"{source}: a study needs 'arms', 'axes' or 'search'")
    check_count(source, [file.arms or [""], *file.axes.values()])
    grid = [dict(zip(file.axes, point, strict=True)) for point in itertools.product(*file.axes.values())]
    short = short_names(list(file.axes))
    arms: dict[str, dict[str, Any]] = {}
    for name, overrides in (file.arms or {"": {}}).items():
        for point in grid:
            parts = [str(name)] if name else []
            label = "_".join(parts + [arm_label(short[key], value) for key, value in point.items()])
            if label in arms:
                raise ConfigError(f"{source}: two arms are called '{label}'; name them under 'arms' instead")
            before = next(reversed(arms.values()), {}) if file.cumulative else {}
            arms[label] = {**before, **overrides, **point}
    return arms


def check_count(source: str, factors: Sequence[Collection[Any]]) -> None:
    """Check that a study does not get more than `MAX_ARMS` arms.

    Args:
        source: file or command line, for messages.
        factors: the values of each axis, which are combined.

    Raises:
        ConfigError: if there are too many combinations.
    """
    count = math.prod(len(factor) for factor in factors)
    if count > MAX_ARMS:
        raise ConfigError(f"{source}: makes {count:,} combinations; a study has at most {MAX_ARMS:,}")


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest unambiguous ending of each dotted key."""
    names = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        names[key] = next((t for t in tails if not any(f".{other}".endswith(f".{t}") for other in others)), key)
    return names


def arm_label(name: str, value: Any) -> str:
    """Return a name such as `lr=0.001` with characters that are valid in folder names.

    Args:
        name: short name of the key.
        value: the key's value; "empty" if it has no valid character.
    """
    return f"{name}={re.sub(r'[^a-zA-Z0-9_.+-]+', '-', str(value)).strip('-') or 'empty'}"
