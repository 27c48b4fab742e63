"""Group runs that may share a table: same data, measurement, budget and code.

A report shows one set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import MixtureError, ReportError
from analysis.io.columns import NOT_RECORDED, code_versions, config_column, tag_column
from microdit.common.contract import PARAMS, REFERENCE_IMAGES, TRAIN_FLOPS, Tag, final_metric

BUDGET_TOLERANCE = 0.01  # relative; the difference in FLOPs or parameters that a sweep allows between arms
CODE = "code"
BUDGETS = {"flops": ("training FLOPs", TRAIN_FLOPS), "params": ("parameters", PARAMS)}  # by what a study holds
MAX_ARMS_NAMED = 4
DIGEST_CHARACTERS = 10  # of a digest or commit in print
MIN_DIGEST_CHARACTERS = 16  # from which a hexadecimal word is shortened


@dataclass(frozen=True)
class SetSelection:
    """The set that a report shows.

    Attributes:
        which: number of the set, counted from the newest, 1; None rejects a mixture.
        pool_code: ignore differences in code version.
    """

    which: int | None = 1
    pool_code: bool = False


@dataclass(frozen=True)
class ComparableRuns:
    """The newest run of each arm and seed in one set.

    Attributes:
        frame: one row per run.
        facts: what the runs share, by name.
    """

    frame: pd.DataFrame
    facts: Mapping[str, str]

    @property
    def title(self) -> str:
        """Return the set in print, such as `5 runs (none, naive_75)`."""
        arms = list(dict.fromkeys(self.frame["arm"]))
        more = f" and {len(arms) - MAX_ARMS_NAMED} more" if len(arms) > MAX_ARMS_NAMED else ""
        return f"{len(self.frame)} run{'s' if len(self.frame) > 1 else ''} ({', '.join(arms[:MAX_ARMS_NAMED])}{more})"


def comparable(frame: pd.DataFrame, holds: str, pool_code: bool = False) -> list[ComparableRuns]:
    """Return the sets of comparable runs, the one with the newest run first.

    Args:
        frame: one row per finished run.
        holds: what the study's arms hold fixed.
        pool_code: ignore differences in code version.
    """
    facts = identity(frame, holds)
    if pool_code:
        facts = facts.drop(columns=CODE)
    names = [str(name) for name in facts.columns]
    sets = []
    for key, part in frame.groupby([facts[name] for name in names], sort=False):
        part = part.sort_values("started", kind="stable").drop_duplicates(["arm", "seed"], keep="last")
        sets.append(ComparableRuns(part, dict(zip(names, (str(value) for value in key), strict=True))))
    return sorted(sets, key=lambda found: found.frame["started"].max(), reverse=True)


def choose(frame: pd.DataFrame, holds: str, choice: SetSelection) -> tuple[ComparableRuns, tuple[str, ...]]:
    """Choose the set to show.

    Args:
        frame: one row per finished run.
        holds: what the study's arms hold fixed.
        choice: number of the set, and whether code versions are pooled.

    Returns:
        The set, and one line for each set that is left out.

    Raises:
        MixtureError: if there are several sets and `choice` rejects a mixture.
        ReportError: if there is no set of the chosen number.
    """
    sets = comparable(frame, holds, choice.pool_code)
    number = choice.which or 1
    if number > len(sets):
        raise ReportError(f"set={number}: there {'is' if len(sets) == 1 else 'are'} only {len(sets)}")
    chosen = sets[number - 1]
    lines = []
    for place, other in enumerate(sets, 1):
        if other is chosen:
            continue
        different = [name for name in chosen.facts if other.facts[name] != chosen.facts[name]]
        words = "; ".join(
            f"{name} {_short(other.facts[name])} instead of {_short(chosen.facts[name])}" for name in different
        )
        pool = ", code=any pools them" if different == [CODE] else ""
        lines.append(f"{other.title}: {words} (set={place} shows them{pool})")
    if lines and choice.which is None:
        raise MixtureError(
            f"the selected runs are not comparable: {'; '.join(lines)}. Use set=1 for the newest set, or launch the "
            "study again with the same settings for every arm"
        )
    return chosen, tuple(f"Left out as not comparable: {line}." for line in lines)


def identity(frame: pd.DataFrame, holds: str) -> pd.DataFrame:
    """Return a table of the facts that comparable runs share.

    Args:
        frame: one row per run.
        holds: what the study's arms hold fixed: `steps`, `flops`, `params`, or "" for nothing.

    Returns:
        One row per run and one column of text per fact: algorithm, data, networks, samples, real images, the budget
        that the study holds, and code.
    """
    algorithm = tag_column(Tag.ALGORITHM)
    facts = {
        "algorithm": frame[algorithm] if algorithm in frame else pd.Series("1", index=frame.index),
        "data": frame[tag_column(Tag.DATA_FINGERPRINT)],
        "networks": frame[tag_column(Tag.FEATURE_NET)],
        "samples": frame[tag_column(Tag.SAMPLES)],
        "real images": _grouped_numbers(frame, final_metric(REFERENCE_IMAGES), 0.0),
    }
    if holds == "steps":
        facts["steps x batch"] = _grouped_numbers(frame.assign(seen=_images_seen(frame)), "seen", 0.0)
    elif holds in BUDGETS:
        name, column = BUDGETS[holds]
        facts[name] = _grouped_numbers(frame, column, BUDGET_TOLERANCE)
    facts[CODE] = code_versions(frame)
    return pd.DataFrame(facts).astype(str)


def _images_seen(frame: pd.DataFrame) -> pd.Series:
    columns = [config_column(f"training.{name}") for name in ("steps", "batch_size")]
    if any(column not in frame for column in columns):
        return pd.Series(np.nan, index=frame.index)
    steps, batch = (pd.to_numeric(frame[column], errors="coerce") for column in columns)
    return steps * batch


def _grouped_numbers(frame: pd.DataFrame, column: str, tolerance: float) -> pd.Series:
    """Return numbers as text; those within a relative tolerance get the smallest's."""
    if column not in frame:
        return pd.Series(NOT_RECORDED, index=frame.index)
    words: dict[float, str] = {}
    least = np.nan
    for value in sorted(frame[column].dropna().unique()):
        if not value - least <= tolerance * value:  # also true while `least` is NaN
            least = value
        words[value] = f"{least:,.0f}"
    return frame[column].map(lambda value: words.get(value, NOT_RECORDED))


def _short(value: str) -> str:
    """Return a text with a digest or commit at its beginning shortened."""
    head, space, rest = value.partition(" ")
    is_digest = len(head) > MIN_DIGEST_CHARACTERS and all(c in "0123456789abcdef" for c in head)
    return f"{head[:DIGEST_CHARACTERS]}{space}{rest}" if is_digest else value
