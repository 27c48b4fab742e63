"""Style arms, the same in all figures of a study.

They can be distinguished in color, in gray and by color-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.io.results import Results
from analysis.io.study import hue_of

# Okabe & Ito's colors that are dark enough on white, then two of Tol's; neighbors also differ in lightness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
NEUTRAL = "#777777"


@dataclass(frozen=True)
class Style:
    """Color, marker and matplotlib line style of an arm or hue."""

    color: str
    marker: str
    line: Any


@dataclass(frozen=True)
class Palette:
    """Styles by arm and by hue, in the study's order.

    Attributes:
        hue: of each arm.
        grouped: hues have several arms each. An arm then has its hue's color and marker, and its rank within the hue
            gives the line style. Otherwise each arm has its own color, marker and line style.
    """

    arms: Mapping[str, Style]
    hues: Mapping[str, Style]
    hue: Mapping[str, str]
    grouped: bool


def style(rank: int) -> Style:
    """Return a style; the first 198 differ.

    Args:
        rank: from 0.
    """
    return Style(COLORS[rank % len(COLORS)], MARKERS[rank % len(MARKERS)], LINES[rank % len(LINES)])


def arm_styles(results: Results) -> Palette:
    """Return the styles of all arms.

    Arms without a result are included, so that a style doesn't change as runs finish.
    """
    known = {arm: hue for frame in (results.frame, results.others) for arm, hue in _pairs(frame)}
    arms = dict.fromkeys([*results.study.arms, *known])
    hue = {arm: known[arm] if arm in known else hue_of(results.study, arm) for arm in arms}
    hues = list(dict.fromkeys(hue.values()))
    if results.study.search:  # all trials of a search look the same
        return Palette(dict.fromkeys(arms, style(0)), dict.fromkeys(hues, style(0)), hue, True)
    grouped = 1 < len(hues) < len(arms)
    looks = {name: style(rank) for rank, name in enumerate(hues)}
    if not grouped:
        own = {arm: style(rank) for rank, arm in enumerate(arms)}
        by_hue = {"": Style(NEUTRAL, "", "-")} if len(hues) == 1 else {hue[arm]: look for arm, look in own.items()}
        return Palette(own, {name: by_hue.get(name, looks[name]) for name in hues}, hue, False)
    places = dict.fromkeys(hues, 0)
    found = {}
    for arm, name in hue.items():
        found[arm] = Style(looks[name].color, looks[name].marker, LINES[places[name] % len(LINES)])
        places[name] += 1
    return Palette(found, looks, hue, True)


def _pairs(frame: Any) -> list[tuple[str, str]]:
    return list(zip(frame["arm"], frame["hue"], strict=True)) if len(frame) else []
