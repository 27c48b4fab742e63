"""Draw random scenes: classes and their counts, colors, and the background.

A scene is a function of a row of uniform numbers, and so of (seed, index).

Held-out compositions: the triple (class, background, count) of a group of objects is held out of train and val if

    (background index + 5 * class index + 3 * (count - 1)) % 8 == 0

with the indices in `CLASSES` and `BACKGROUNDS`. This is about one triple in eight; every class, background and count
occurs in training in other triples. In the composition split, the first group of each scene is a held-out triple.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from microdit.data.cifar10 import CLASSES
from microdit.data.emoji.art import BY_CODE, DRAWINGS, painted
from microdit.data.emoji.layout import place_all
from microdit.data.emoji.scene import (
    BACKGROUNDS,
    PLAIN,
    RELATIONS,
    SCENERY,
    Backdrop,
    Group,
    Options,
    Scene,
    SceneObject,
    UniformDraws,
)


def held_out(kind: str, background: str, count: int) -> bool:
    """Return whether a composition occurs in the composition split only.

    Args:
        kind: one of `CLASSES`.
        background: one of `BACKGROUNDS`.
        count: objects of the class, from 1 to 3.
    """
    return (BACKGROUNDS.index(background) + 5 * CLASSES.index(kind) + 3 * (count - 1)) % 8 == 0


def sample_scene(draws: UniformDraws, options: Options, composition: bool) -> Scene:
    """Draw one scene.

    Args:
        draws: random draws.
        options: settings of the distribution.
        composition: the first group is a held-out composition; otherwise no group is.

    Returns:
        The scene, with one or two groups.
    """
    kind = draws.pick(CLASSES)
    count = 1 + draws.weighted((0.45, 0.35, 0.2)[: options.max_objects])
    mixed = count > 1 and draws.chance(0.5)
    counts = _split_counts(count, mixed, draws)
    other = draws.pick(_companions(kind, counts, options, composition))
    kinds = (kind, other)[: len(counts)]
    relation = draws.pick(RELATIONS) if mixed else None
    background = _pick_background(draws, options, composition, kinds, counts, relation)
    sizes = _sizes(draws, counts) if options.sizes else (None,) * len(counts)
    groups = tuple(Group(k, c, s) for k, c, s in zip(kinds, counts, sizes, strict=True))
    backdrop = _backdrop(draws, background)
    looks = [look for g in groups for look in _looks(draws, g, background, options)]
    boxes = place_all(draws, groups, [code for code, _ in looks], relation, backdrop, options.places)
    members = [index for index, g in enumerate(groups) for _ in range(g.count)]
    things = tuple(
        SceneObject(member, code, color, draws.chance(0.5) and BY_CODE[code].flips, box)
        for member, (code, color), box in zip(members, looks, boxes, strict=True)
    )
    return Scene(groups, things, backdrop, relation)


def _split_counts(count: int, mixed: bool, draws: UniformDraws) -> tuple[int, ...]:
    first = 1 if draws.chance(0.6) else 2
    if not mixed:
        return (count,)
    return (1, 1) if count == 2 else (first, 3 - first)


def _sizes(draws: UniformDraws, counts: tuple[int, ...]) -> tuple[str | None, ...]:
    which = draws.weighted((0.7, 0.15, 0.15))
    if counts == (1,):
        return ((None, "small", "big")[which],)
    if counts == (1, 1):
        return ((None, None), ("small", "big"), ("big", "small"))[which]
    return (None,) * len(counts)


# ---- looks and backgrounds ----


@cache
def _looks_on(kind: str, background: str, options: Options) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
    """Return the drawings of a class that stand out from a background, with their possible colors."""
    result = []
    for drawing in DRAWINGS[kind][: options.drawings]:
        colors = dict.fromkeys((drawing.color, *(drawing.colors if options.hues else ())))
        seen = tuple(color for color in colors if color != background and _stands_out(drawing.code, color, background))
        if seen:
            result.append((drawing.code, seen))
    return tuple(result)


@cache
def _outline(code: str, color: str | None) -> np.ndarray:
    art = painted(code, color)
    solid = art[..., 3] > 128
    inner = solid.copy()
    for axis in (0, 1):
        for step in (-2, 2):
            inner &= np.roll(np.pad(solid, 2), step, axis)[2:-2, 2:-2]
    return _perceptual(art[solid & ~inner][:, :3])


def _perceptual(rgb: np.ndarray) -> np.ndarray:
    """Transform RGB so that distances roughly match perceived ones; 40 is clearly visible."""
    return rgb.astype(np.float64) @ np.array([[0.5, 0.45, -0.2], [0.6, -0.5, -0.3], [0.15, 0.05, 0.5]])


@cache
def _stands_out(code: str, color: str | None, background: str) -> bool:
    shades = (PLAIN[background],) if background in PLAIN else SCENERY[background][:2]
    edge = _outline(code, color)
    hidden = max(float((np.linalg.norm(edge - _perceptual(np.array(shade)), axis=-1) < 32).mean()) for shade in shades)
    return hidden < (0.3 if background in PLAIN else 0.45)


def _pick_background(
    draws: UniformDraws,
    options: Options,
    composition: bool,
    kinds: tuple[str, ...],
    counts: tuple[int, ...],
    relation: str | None,
) -> str:
    grounded = options.scenery and relation not in ("above", "below") and sum(counts) < 3
    plain, scenic = _backgrounds(kinds, counts, options, composition)
    wants_scenery = draws.chance(0.4)
    return draws.pick(scenic if scenic and grounded and wants_scenery else plain)


@cache
def _companions(kind: str, counts: tuple[int, ...], options: Options, composition: bool) -> tuple[str, ...]:
    """Return the classes that may share an image with `kind`: a plain background of this split suits both."""
    others = [name for name in CLASSES if name != kind]
    if len(counts) == 1:
        return tuple(others)
    return tuple(name for name in others if _backgrounds((kind, name), counts, options, composition)[0])


@cache
def _backgrounds(
    kinds: tuple[str, ...], counts: tuple[int, ...], options: Options, composition: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the plain and the scenic backgrounds of this split that suit these groups."""

    def allowed(background: str) -> bool:
        out = [held_out(kind, background, count) for kind, count in zip(kinds, counts, strict=True)]
        return (out[0] if composition else not any(out)) and all(_looks_on(kind, background, options) for kind in kinds)

    plain = tuple(name for name in PLAIN if allowed(name))
    scenic = tuple(name for name in SCENERY if allowed(name) and all(kind in SCENERY[name][3] for kind in kinds))
    return plain, scenic


def _looks(draws: UniformDraws, group: Group, background: str, options: Options) -> list[tuple[str, str | None]]:
    choices = _looks_on(group.kind, background, options)
    alike = draws.chance(0.65)
    looks: list[tuple[str, str | None]] = []
    for _ in range(group.count):
        if looks and alike:
            looks.append(looks[0])
            continue
        code, colors = draws.pick(choices)
        looks.append((code, draws.pick(colors)))
    return looks


def _backdrop(draws: UniformDraws, name: str) -> Backdrop:
    shade, tilt = draws.uniform(0.95, 1.03), draws.uniform(-0.05, 0.05)
    horizon = draws.uniform(0.45, 0.62)

    def scaled(rgb: tuple[int, ...], factor: float) -> tuple[float, ...]:
        return tuple(min(255.0, channel * factor) for channel in rgb)

    if name in PLAIN:
        return Backdrop(name, scaled(PLAIN[name], shade * (1 + tilt)), scaled(PLAIN[name], shade * (1 - tilt)))
    sky, ground, haze, _ = SCENERY[name]
    if name == "sky":
        return Backdrop(name, scaled(sky, shade * 0.92), scaled(ground, shade * 1.08))
    return Backdrop(name, scaled(sky, shade), scaled(ground, shade), horizon, haze)
