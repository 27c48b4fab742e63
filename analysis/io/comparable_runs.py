"""Runs that may stand in one table: same data, measurement, budget and code. Others are refused or shown apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import MixtureError, ReportError

NOT_RECORDED = "not recorded"
TOLERANCE = 0.01  # of FLOPs or parameters that a study holds: as far apart as a sweep lets its arms be
CODE = "code"
BUDGETS = {"flops": ("training FLOPs", "cost/train_flops"), "params": ("parameters", "cost/params")}


@dataclass(frozen=True)
class SetSelection:
    """Which set a report shows: `which` counts from the newest, 1; None refuses a mixture. `pool_code` looks over
    differences in code version."""

    which: int | None = 1
    pool_code: bool = False


@dataclass(frozen=True)
class ComparableRuns:
    """Comparable runs: the newest of each arm and seed. `facts` are what they share, by name."""

    frame: pd.DataFrame
    facts: Mapping[str, str]

    @property
    def title(self) -> str:
        """`5 runs (none, naive_75)`."""
        arms = list(dict.fromkeys(self.frame["arm"]))
        named = ", ".join(arms[:4]) + (f" and {len(arms) - 4} more" if len(arms) > 4 else "")
        return f"{len(self.frame)} run{'s' if len(self.frame) > 1 else ''} ({named})"


def comparable(frame: pd.DataFrame, holds: str, pool_code: bool = False) -> list[ComparableRuns]:
    """The sets of `frame`'s finished runs, the one with the newest run first; `holds` is what the study holds."""
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
    """The set to show, and a line for each that is left out.

    Raises MixtureError naming the values where a mixture is refused, and ReportError for a set that isn't there.
    """
    sets = comparable(frame, holds, choice.pool_code)
    if choice.which is None:
        require_single_set(sets)
    number = choice.which or 1
    if number > len(sets):
        raise ReportError(f"set={number}: there {'is' if len(sets) == 1 else 'are'} only {len(sets)}")
    chosen = sets[number - 1]
    lines = []
    for place, other in enumerate(sets, 1):
        if other is chosen:
            continue
        apart = [name for name in chosen.facts if other.facts[name] != chosen.facts[name]]
        words = "; ".join(
            f"{name} {_short(other.facts[name])} instead of {_short(chosen.facts[name])}" for name in apart
        )
        pool = ", code=any pools them" if apart == [CODE] else ""
        lines.append(f"Left out as not comparable: {other.title}: {words} (set={place} shows them{pool}).")
    return chosen, tuple(lines)


def require_single_set(sets: Sequence[ComparableRuns]) -> None:
    """Raises MixtureError where there is more than one set, with the values that differ and whose they are."""
    if len(sets) < 2:
        return
    words = []
    for name in sets[0].facts:
        values: dict[str, list[str]] = {}
        for found in sets:
            values.setdefault(found.facts[name], []).append(found.title)
        if len(values) > 1:
            words.append(
                f"{name}: " + ", ".join(f"{_short(value)} for {' and '.join(who)}" for value, who in values.items())
            )
    raise MixtureError(
        f"runs that differ can't be compared: {'; '.join(words)}. set=1 shows the newest set, set=2 the next; or "
        "launch the study again with the same settings, so that every arm has them"
    )


def identity(frame: pd.DataFrame, holds: str) -> pd.DataFrame:
    """A column of words per fact that comparable runs share, a row per run."""
    facts = {
        "algorithm": frame["tag.algorithm"] if "tag.algorithm" in frame else pd.Series("1", index=frame.index),
        "data": frame["tag.data_fingerprint"],
        "networks": frame["tag.feature_net"],
        "samples": frame["tag.samples"],
        "real images": _numbers(frame, "final/reference_images", 0.0),
    }
    if holds == "steps":
        facts["steps x batch"] = _numbers(frame.assign(seen=_images_seen(frame)), "seen", 0.0)
    elif holds in BUDGETS:
        name, column = BUDGETS[holds]
        facts[name] = _numbers(frame, column, TOLERANCE)
    dirty = frame["tag.git_dirty"].map(lambda value: " with uncommitted changes" if value == "true" else "")
    facts[CODE] = frame["tag.git_commit"] + dirty
    return pd.DataFrame(facts).astype(str)


def _images_seen(frame: pd.DataFrame) -> pd.Series:
    columns = [f"config.training.{name}" for name in ("steps", "batch_size")]
    if any(column not in frame for column in columns):
        return pd.Series(np.nan, index=frame.index)
    steps, batch = (pd.to_numeric(frame[column], errors="coerce") for column in columns)
    return steps * batch


def _numbers(frame: pd.DataFrame, column: str, tolerance: float) -> pd.Series:
    """Numbers as words; those within `tolerance` of the least of their kind get its word."""
    if column not in frame:
        return pd.Series(NOT_RECORDED, index=frame.index)
    words: dict[float, str] = {}
    least = np.nan
    for value in sorted(frame[column].dropna().unique()):
        if not value - least <= tolerance * value:  # also where `least` is NaN
            least = value
        words[value] = f"{least:,.0f}"
    return frame[column].map(lambda value: words.get(value, NOT_RECORDED))


def _short(value: str) -> str:
    """A digest or commit in as many characters as tell it apart."""
    head, space, rest = value.partition(" ")
    long = len(head) > 16 and all(c in "0123456789abcdef" for c in head)
    return f"{head[:10]}{space}{rest}" if long else value
