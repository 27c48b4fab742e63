"""Which scenes there are: what is in the picture, where, in which colours, and on what background.

A scene is drawn from a sequence of uniform numbers and so from (seed, index) alone. All positions and sizes are shares
of the frame's side; x grows to the right, y downwards.

Held-out compositions. The triple (class, background, count) of a group of objects is held out of train and val when

    (background index + 5 * class index + 3 * (count - 1)) % 8 == 0

with the indices of `CLASSES` and `BACKGROUNDS`: about one triple in eight, spread so that every class, every background
and every count is still trained on in other company. The composition split shows only these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from microdit.data.emoji_art import BY_CODE, CLASSES, DRAWINGS, painted
from microdit.data.emoji_render import aspect

T = TypeVar("T")

SKY = (142, 205, 245)
PLAIN = {
    "white": (247, 248, 250),
    "gray": (160, 168, 176),
    "black": (38, 41, 46),
    "red": (214, 74, 80),
    "orange": (247, 164, 84),
    "yellow": (255, 226, 128),
    "green": (146, 203, 124),
    "blue": (116, 176, 236),
    "purple": (176, 146, 220),
    "pink": (248, 180, 200),
}
# name -> (sky, ground, haze, classes that may stand there)
SCENERY = {
    "meadow": (SKY, (122, 190, 92), 0.5, ("automobile", "bird", "cat", "deer", "dog", "frog", "horse", "truck")),
    "sea": (SKY, (58, 128, 196), 0.5, ("ship",)),
    "desert": (SKY, (236, 204, 140), 0.5, ("automobile", "dog", "horse", "truck", "bird")),
    "snow": (SKY, (242, 245, 250), 0.3, ("automobile", "bird", "cat", "deer", "dog", "horse", "truck")),
    "road": (SKY, (122, 128, 136), 0.5, ("automobile", "truck", "dog", "cat")),
    "sky": (SKY, SKY, 0.0, ("airplane", "bird")),
    "night": ((24, 32, 74), (38, 54, 60), 0.12, ("airplane", "automobile", "cat", "deer", "dog", "ship", "truck")),
}
BACKGROUNDS = (*PLAIN, *SCENERY)
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Options:
    """The dials of the distribution of scenes."""

    max_objects: int = 3
    hues: bool = True
    scenery: bool = True


@dataclass(frozen=True)
class Backdrop:
    """A background: colours in [0, 255] at top and bottom, or sky and ground with a horizon."""

    name: str
    upper: tuple[float, ...]
    lower: tuple[float, ...]
    horizon: float | None = None
    haze: float = 0.0


@dataclass(frozen=True)
class Thing:
    """One object in the picture."""

    group: int
    code: str
    colour: str | None
    """Colour word that is true of it; None where no single word is."""
    flip: bool
    box: tuple[float, float, float, float]
    """left, top, right, bottom."""


@dataclass(frozen=True)
class Group:
    """Objects of one class that the caption names together."""

    kind: str
    count: int
    size: str | None = None
    """"small" or "big", or None for neither."""


@dataclass(frozen=True)
class Scene:
    """A complete picture before it is drawn; `relation` is the first group's to the second."""

    groups: tuple[Group, ...]
    things: tuple[Thing, ...]
    backdrop: Backdrop
    relation: str | None


class Dice:
    """Choices read off one row of uniform numbers; much faster than a generator's own methods."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = iter(numbers.tolist())

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(next(self._numbers) * len(choices))]

    def weighted(self, weights: Sequence[float]) -> int:
        point = next(self._numbers) * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1


def held_out(kind: str, background: str, count: int) -> bool:
    """Whether this composition occurs in the composition split only (the rule is in the module's docstring)."""
    return (BACKGROUNDS.index(background) + 5 * CLASSES.index(kind) + 3 * (count - 1)) % 8 == 0


def sample_scene(dice: Dice, options: Options, composition: bool) -> Scene:
    """Draws one scene; with `composition`, its first group is a held-out composition, else no group is one."""
    kind = dice.pick(CLASSES)
    count = 1 + dice.weighted((0.45, 0.35, 0.2)[: options.max_objects])
    mixed = count > 1 and dice.chance(0.5)
    counts = _split_counts(count, mixed, dice)
    other = dice.pick(_companions(kind, counts, options.hues, composition))
    kinds = (kind, other)[: len(counts)]
    relation = dice.pick(RELATIONS) if mixed else None
    background = _pick_background(dice, options, composition, kinds, counts, relation)
    sizes = _sizes(dice, counts)
    groups = tuple(Group(k, c, s) for k, c, s in zip(kinds, counts, sizes, strict=True))
    backdrop = _backdrop(dice, background)
    looks = [look for g in groups for look in _looks(dice, g, background, options.hues)]
    boxes = _boxes(dice, groups, looks, relation, backdrop)
    members = [index for index, g in enumerate(groups) for _ in range(g.count)]
    things = tuple(
        Thing(member, code, colour, dice.chance(0.5) and BY_CODE[code].flips, box)
        for member, (code, colour), box in zip(members, looks, boxes, strict=True)
    )
    return Scene(groups, things, backdrop, relation)


def _split_counts(count: int, mixed: bool, dice: Dice) -> tuple[int, ...]:
    first = 1 if dice.chance(0.6) else 2
    if not mixed:
        return (count,)
    return (1, 1) if count == 2 else (first, 3 - first)


def _sizes(dice: Dice, counts: tuple[int, ...]) -> tuple[str | None, ...]:
    which = dice.weighted((0.7, 0.15, 0.15))
    if counts == (1,):
        return ((None, "small", "big")[which],)
    if counts == (1, 1):
        return ((None, None), ("small", "big"), ("big", "small"))[which]
    return (None,) * len(counts)


# ---- looks and backgrounds ----


@cache
def looks_on(kind: str, background: str, hues: bool) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """(drawing, its colours) of a class that stand out from a background."""
    result = []
    for drawing in DRAWINGS[kind]:
        colours = dict.fromkeys((drawing.colour, *(drawing.colours if hues else ())))
        seen = tuple(
            colour for colour in colours if colour != background and _stands_out(drawing.code, colour, background)
        )
        if seen:
            result.append((drawing.code, seen))
    return tuple(result)


@cache
def _outline(code: str, colour: str | None) -> np.ndarray:
    art = painted(code, colour)
    solid = art[..., 3] > 128
    inner = solid.copy()
    for axis in (0, 1):
        for step in (-2, 2):
            inner &= np.roll(np.pad(solid, 2), step, axis)[2:-2, 2:-2]
    return _perceptual(art[solid & ~inner][:, :3])


def _perceptual(rgb: np.ndarray) -> np.ndarray:
    """RGB weighted roughly as the eye does; distances of 40 are plain to see."""
    return rgb.astype(np.float64) @ np.array([[0.5, 0.45, -0.2], [0.6, -0.5, -0.3], [0.15, 0.05, 0.5]])


@cache
def _stands_out(code: str, colour: str | None, background: str) -> bool:
    shades = (PLAIN[background],) if background in PLAIN else SCENERY[background][:2]
    edge = _outline(code, colour)
    hidden = max(float((np.linalg.norm(edge - _perceptual(np.array(shade)), axis=-1) < 32).mean()) for shade in shades)
    return hidden < (0.3 if background in PLAIN else 0.45)


def _pick_background(
    dice: Dice,
    options: Options,
    composition: bool,
    kinds: tuple[str, ...],
    counts: tuple[int, ...],
    relation: str | None,
) -> str:
    grounded = options.scenery and relation not in ("above", "below") and sum(counts) < 3
    plain, scenic = _backgrounds(kinds, counts, options.hues, composition)
    wants_scenery = dice.chance(0.4)
    return dice.pick(scenic if scenic and grounded and wants_scenery else plain)


@cache
def _companions(kind: str, counts: tuple[int, ...], hues: bool, composition: bool) -> tuple[str, ...]:
    """Classes that may share a picture with `kind`: some plain background suits both, in this split."""
    others = [name for name in CLASSES if name != kind]
    if len(counts) == 1:
        return tuple(others)
    return tuple(name for name in others if _backgrounds((kind, name), counts, hues, composition)[0])


@cache
def _backgrounds(
    kinds: tuple[str, ...], counts: tuple[int, ...], hues: bool, composition: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Plain and scenic backgrounds on which these groups can be seen and may be in this split."""

    def allowed(background: str) -> bool:
        out = [held_out(kind, background, count) for kind, count in zip(kinds, counts, strict=True)]
        return (out[0] if composition else not any(out)) and all(looks_on(kind, background, hues) for kind in kinds)

    plain = tuple(name for name in PLAIN if allowed(name))
    scenic = tuple(name for name in SCENERY if allowed(name) and all(kind in SCENERY[name][3] for kind in kinds))
    return plain, scenic


def _looks(dice: Dice, group: Group, background: str, hues: bool) -> list[tuple[str, str | None]]:
    choices = looks_on(group.kind, background, hues)
    alike = dice.chance(0.65)
    looks: list[tuple[str, str | None]] = []
    for _ in range(group.count):
        if looks and alike:
            looks.append(looks[0])
            continue
        code, colours = dice.pick(choices)
        looks.append((code, dice.pick(colours)))
    return looks


def _backdrop(dice: Dice, name: str) -> Backdrop:
    shade, tilt = dice.uniform(0.95, 1.03), dice.uniform(-0.05, 0.05)
    horizon = dice.uniform(0.45, 0.62)

    def scaled(rgb: tuple[int, ...], factor: float) -> tuple[float, ...]:
        return tuple(min(255.0, channel * factor) for channel in rgb)

    if name in PLAIN:
        return Backdrop(name, scaled(PLAIN[name], shade * (1 + tilt)), scaled(PLAIN[name], shade * (1 - tilt)))
    sky, ground, haze, _ = SCENERY[name]
    if name == "sky":
        return Backdrop(name, scaled(sky, shade * 0.92), scaled(ground, shade * 1.08))
    return Backdrop(name, scaled(sky, shade), scaled(ground, shade), horizon, haze)


# ---- places ----

Box = tuple[float, float, float, float]
EDGE = 0.02


def _cells(dice: Dice, groups: tuple[Group, ...], relation: str | None) -> list[Box]:
    """One cell a thing, first group first; cells never overlap, so neither do the things."""
    count = sum(group.count for group in groups)
    if count == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    if relation is None:
        return _free_cells(dice, count)
    split = {None: 0.5, "small": 0.4, "big": 0.6}[groups[0].size]
    before = relation in ("left of", "above")
    near, far = (0.0, split), (split, 1.0)
    if not before:
        near, far = (1 - split, 1.0), (0.0, 1 - split)
    cells = []
    for group, (start, end) in zip(groups, (near, far), strict=True):
        for part in range(group.count):
            low, high = (0.12, 0.88) if group.count == 1 else (part / 2, (part + 1) / 2)
            cells.append((start, low, end, high))
    return cells if relation in ("left of", "right of") else [(y0, x0, y1, x1) for x0, y0, x1, y1 in cells]


def _free_cells(dice: Dice, count: int) -> list[Box]:
    halves = ((0.0, 0.5), (0.5, 1.0))
    if count == 2:
        layout = dice.weighted((0.6, 0.2, 0.2))
        row: list[Box] = [(0.0, 0.12, 0.5, 0.88), (0.5, 0.12, 1.0, 0.88)]
        if layout == 0:
            return row
        if layout == 1:
            return [(y0, x0, y1, x1) for x0, y0, x1, y1 in row]
        return [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)]
    top_one = dice.chance(0.5)
    alone, pair = halves if top_one else halves[::-1]
    return [(0.25, alone[0], 0.75, alone[1]), *[(left, pair[0], right, pair[1]) for left, right in halves]]


def _boxes(
    dice: Dice,
    groups: tuple[Group, ...],
    looks: list[tuple[str, str | None]],
    relation: str | None,
    backdrop: Backdrop,
) -> list[Box]:
    cells = _cells(dice, groups, relation)
    if backdrop.horizon is not None and len(cells) == 2:
        cells = [(x0, 0.0, x1, 1.0) for x0, _, x1, _ in _side_by_side(cells)]
    members = [group for group in groups for _ in range(group.count)]
    return [
        _place(dice, cell, code, group.size, len(cells), backdrop, group.kind == "airplane")
        for cell, (code, _), group in zip(cells, looks, members, strict=True)
    ]


def _side_by_side(cells: list[Box]) -> list[Box]:
    """On the ground nothing floats above another: cells stacked over each other become neighbours."""
    if cells[0][2] <= cells[1][0] or cells[1][2] <= cells[0][0]:
        return cells
    return [(y0, x0, y1, x1) for x0, y0, x1, y1 in cells]


def _place(dice: Dice, cell: Box, code: str, size: str | None, count: int, backdrop: Backdrop, flies: bool) -> Box:
    if count == 1:
        low, high = {None: (0.58, 0.8), "small": (0.38, 0.48), "big": (0.86, 0.95)}[size]
    elif count == 2:
        low, high = {None: (0.42, 0.47), "small": (0.3, 0.36), "big": (0.5, 0.56)}[size]
    else:
        low, high = 0.4, 0.46
    longest = dice.uniform(low, high)
    width, height = (longest * share for share in aspect(code))
    x0, y0, x1, y1 = cell
    margin = EDGE if count == 1 else EDGE / 2
    left = dice.uniform(x0 + margin, x1 - margin - width)
    low_top, high_top = y0 + margin, y1 - margin - height
    if backdrop.horizon is not None and not flies:
        # Feet, wheels and keels rest on the ground, between the horizon and the lower edge.
        low_top = min(high_top, max(low_top, backdrop.horizon + 0.06 - height))
    top = dice.uniform(low_top, high_top)
    return left, top, left + width, top + height
