"""Change one fact of a caption of emoji-captions, as a hard negative for training CLIPs."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from microdit.data.cifar10 import CLASSES
from microdit.data.emoji.art import COLORS, DRAWINGS
from microdit.data.emoji.captions import CLASS_NOUNS, RELATION_WORDS, SCENERY_WORDS, SIZES, article, plural
from microdit.data.emoji.scene import PLAIN

ATTRIBUTES = ("class", "color", "count", "background", "relation")
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("in a green meadow", "at sea", "in the desert", "in the snow", "on the road", "in the sky", "at night")


def swap(caption: str, attribute: str, rng: np.random.Generator) -> str | None:
    """Return a caption with an attribute of one object changed at random.

    A class is replaced by the general noun of another one, a relation by its opposite; words without direction
    ("beside", "and") are not relations. The rest is unchanged, and the sentence stays grammatical.

    Args:
        caption: of emoji-captions.
        attribute: of `ATTRIBUTES`.
        rng: source of randomness.

    Returns:
        The changed caption; None if it has no such attribute.
    """
    if attribute == "background":
        return _swap_background(caption, rng)
    if attribute == "relation":
        return _swap_relation(caption)
    phrases = list(_phrase().finditer(caption))
    groups = [match for match in phrases if attribute != "color" or match["color"]]
    if not groups:
        return None
    match = groups[int(rng.integers(len(groups)))]
    count, size, color, noun = NUMBERS[match["number"]], match["size"], match["color"], match["noun"]
    singular, kind = _nouns()[noun]
    if attribute == "class":
        singular = CLASS_NOUNS[_other(tuple(CLASSES), kind, rng)][0]
    elif attribute == "color":
        color = _other(tuple(COLORS), color, rng)
    else:
        count = int(_other(("1", "2", "3"), str(count), rng))
    words = [word for word in (size, color) if word] + [singular if count == 1 else plural(singular)]
    number = article(words[0]) if count == 1 else ("two", "three")[count - 2]
    changed = caption[: match.start()] + " ".join([number, *words]) + caption[match.end() :]
    if match is phrases[0]:
        changed = re.sub(r"\bthere (is|are)\b", f"there {'is' if count == 1 else 'are'}", changed)
    return changed


def _swap_background(caption: str, rng: np.random.Generator) -> str | None:
    plain = re.search(rf"\ban? (?P<name>{'|'.join(PLAIN)}) background\b", caption)
    if plain:
        name = _other(tuple(PLAIN), plain["name"], rng)
        return caption[: plain.start()] + f"{article(name)} {name} background" + caption[plain.end() :]
    found = _scenery().search(caption)
    if not found:
        return None
    place = _other(PLACES, next(p for p in PLACES if found[0] in _same_place()[p]), rng)
    return caption[: found.start()] + place + caption[found.end() :]


def _swap_relation(caption: str) -> str | None:
    for relation, known in RELATION_WORDS.items():
        for index, words in enumerate(known):
            spot = re.search(rf"(?<!to the )\b{words}\b", caption)
            if spot and not re.match(r" an? night", caption[spot.end() :]):
                return caption[: spot.start()] + RELATION_WORDS[OPPOSITE[relation]][index] + caption[spot.end() :]
    return None


def _other(choices: tuple[str, ...], taken: str, rng: np.random.Generator) -> str:
    rest = [choice for choice in choices if choice != taken]
    return rest[int(rng.integers(len(rest)))]


@cache
def _nouns() -> dict[str, tuple[str, str]]:
    """Return every noun, singular or plural, with its singular and its class."""
    singulars = {n: kind for kind in CLASSES for d in DRAWINGS[kind] for n in (*CLASS_NOUNS[kind], *d.names)}
    return {form: (n, kind) for n, kind in singulars.items() for form in (n, plural(n))}


@cache
def _phrase() -> re.Pattern[str]:
    sizes = "|".join(word for words in SIZES.values() for word in words)
    nouns = "|".join(sorted(_nouns(), key=len, reverse=True))
    return re.compile(
        rf"\b(?P<number>an?|two|three) (?:(?P<size>{sizes}) )?(?:(?P<color>{'|'.join(COLORS)}) )?(?P<noun>{nouns})\b"
    )


@cache
def _same_place() -> dict[str, tuple[str, ...]]:
    return {place: words for place in PLACES for words in SCENERY_WORDS.values() if place in words}


@cache
def _scenery() -> re.Pattern[str]:
    known = sorted((words for group in _same_place().values() for words in group), key=len, reverse=True)
    return re.compile(rf"(?:^|(?<= ))(?:{'|'.join(known)})(?=$|,)")
