"""Turn Hydra's multirun into a study, such as `train -m optimizer.weight_decay=0.01,0.1 seed=0,1`.

Hydra's grammar defines what is swept (choices, ranges, globs). The combinations become the arms of a study, so they use
the same queue and launchers, and can be stopped, resumed and reported.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from hashlib import sha256

from hydra.core.override_parser.types import Override

from microdit.common.errors import ConfigError, named
from microdit.common.files.yaml_text import load_yaml
from sweeps.config.hydra_compose import parse_words
from sweeps.config.study import MAX_ARMS, Figure, Metrics, Study, StudySpec, arm_label, check_count, short_names

NAME = "multirun"


def multirun_study(overrides: Sequence[str], scale: str) -> tuple[Study, list[str]]:
    """Return the study that a multirun's overrides describe.

    Args:
        overrides: `key=value` words, some with several values.
        scale: name of the scale.

    Returns:
        The study, and the overrides that all of its arms share.

    Raises:
        ConfigError: if no key has several values, or a seed is not a whole number from 0.
    """
    parsed = parse_words(overrides, "command line")
    swept = {o.key_or_group: _values(o) for o in parsed if o.is_sweep_override()}
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override() and o.key_or_group != "seed"]
    seeds = swept.pop("seed", None) or [o.value() for o in parsed if o.key_or_group == "seed"] or [0]
    whole = tuple(s for s in seeds if isinstance(s, int) and not isinstance(s, bool) and s >= 0)
    if len(whole) < len(seeds):
        raise ConfigError(f"command line: 'seed' takes whole numbers from 0, got {seeds}")
    if not swept and len(whole) < 2:
        raise ConfigError("command line: -m needs a list of values to combine, such as seed=0,1")
    check_count("command line", [*swept.values(), whole])
    short = short_names(list(swept))
    arms = {}
    for point in itertools.product(*swept.values()):
        chosen = dict(zip(swept, point, strict=True))
        arms["_".join(arm_label(short[key], value) for key, value in chosen.items()) or "only"] = chosen
    digest = sha256(repr((sorted(swept), sorted(fixed))).encode()).hexdigest()[:6]
    axis = next(iter(swept), "")
    file = StudySpec(
        question=f"Multirun over {', '.join(swept) or 'seeds'}",
        arms=arms,
        baseline=next(iter(arms)),
        seeds=whole,
        holds="nothing",
        metrics=Metrics(),
        figure=Figure(x=axis if len(swept) == 1 else ""),
    )
    return Study(f"{NAME}-{digest}", scale, "command line", file, arms, whole, {}), fixed


def _values(override: Override) -> list[object]:
    words = list(itertools.islice(override.sweep_string_iterator(), MAX_ARMS + 1))
    check_count("command line", [words])
    return [load_yaml(word, f"command line: '{named(override.input_line)}'") for word in words]
