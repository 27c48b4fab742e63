"""Parse a caption of `emoji-captions` and compare it with the image's attributes.

The parser is independent of the generator, so it finds grammatical errors as well as wrong facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microdit.data.cifar10 import CLASSES
from microdit.data.dataset import Sample
from microdit.data.emoji.art import COLORS, DRAWINGS
from microdit.data.emoji.captions import CLASS_NOUNS, RELATION_WORDS, SCENERY_WORDS, SIDEWAYS, SIZES, article, plural
from microdit.data.emoji.scene import PLAIN

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3}
FRAMES = r"(?:a picture of|a drawing of|an image of|there is|there are)"


@dataclass(frozen=True)
class Phrase:
    """Describe one group of objects as a caption names it."""

    number: str
    size: str | None
    color: str | None
    noun: str
    adjacent: str
    """The word that follows the number."""

    @property
    def count(self) -> int:
        return NUMBERS[self.number]


def check_caption(item: Sample) -> list[str]:
    """Return the caption's statements that `item.attributes` (or `item.label`) contradict, as sentences."""
    phrases, between, background, verb, rest = _parse(item.caption)
    objects: Sequence[Mapping[str, Any]] = item.attributes["objects"]
    groups = [[thing for thing in objects if thing["group"] == g] for g in sorted({o["group"] for o in objects})]
    faults = [f"'{rest}' is not understood"] if rest else []
    if len(phrases) != len(groups):
        return [*faults, f"names {len(phrases)} groups of objects, the picture has {len(groups)}"]
    for phrase, group in zip(phrases, groups, strict=True):
        faults += _check_group(phrase, group)
    if len(groups) == 2:
        sizes = [group[0]["size"] for group in groups]
        if set(sizes) == {"small", "big"}:
            longest = [max(_extent(thing) for thing in group) for group in groups]
            if (longest[0] < longest[1]) != (sizes[0] == "small"):
                faults.append("the small object is the larger one")
        faults += _check_relation(between, groups)
    if background is not None and background != item.attributes["background"]:
        faults.append(f"says background '{background}', it is '{item.attributes['background']}'")
    if verb and verb != ("is" if phrases[0].count == 1 else "are"):
        faults.append(f"says 'there {verb}' of {phrases[0].count}")
    if _class_of(phrases[0]) != CLASSES[item.label]:
        faults.append(f"first names a {_class_of(phrases[0])}, the label is {CLASSES[item.label]}")
    return faults


def _parse(caption: str) -> tuple[list[Phrase], str, str | None, str, str]:
    """Return object phrases, the words between them, the background's name, the verb, and the remaining words."""
    nouns = sorted((n for singular in _nouns() for n in (singular, plural(singular))), key=len, reverse=True)
    pattern = re.compile(
        rf"\b(?P<number>an?|two|three) (?:(?P<size>{'|'.join(_size_words())}) )?"
        rf"(?:(?P<color>{'|'.join(COLORS)}) )?(?P<noun>{'|'.join(nouns)})\b"
    )
    text, background = _take_background(caption)
    found = list(pattern.finditer(text))
    phrases = [
        Phrase(m["number"], m["size"], m["color"], m["noun"], m["size"] or m["color"] or m["noun"]) for m in found
    ]
    between = text[found[0].end() : found[1].start()].strip() if len(found) == 2 else ""
    verb = re.match(r"there (is|are)\b", text)
    relations = [words for known in RELATION_WORDS.values() for words in known]
    rest = re.sub(FRAMES, "", pattern.sub("", text), count=1).replace(",", "")
    for words in sorted((*relations, *SIDEWAYS, "and"), key=len, reverse=True):
        rest = re.sub(rf"\b{words}\b", "", rest, count=1)
    return phrases, between, background, verb[1] if verb else "", " ".join(rest.split())


def _take_background(caption: str) -> tuple[str, str | None]:
    for name in PLAIN:
        words = rf"\b(?:on|against|in front of) {article(name)} {name} background\b"
        if re.search(words, caption):
            return re.sub(words, "", caption), name
    for name, known in SCENERY_WORDS.items():
        for words in known:
            if re.search(rf"(?:^| ){words}(?:$|,)", caption):
                return re.sub(rf"(?:^| ){words}(?=$|,)", "", caption), name
    return caption, None


def _check_group(phrase: Phrase, group: Sequence[Mapping[str, Any]]) -> list[str]:
    faults = []
    noun = phrase.noun if phrase.count == 1 else _singular(phrase.noun)
    if phrase.count != len(group):
        faults.append(f"says {phrase.count}, the picture has {len(group)}")
    if noun not in _nouns() or (phrase.count > 1 and plural(noun) != phrase.noun):
        return [*faults, f"'{phrase.number} {phrase.noun}' has the wrong number"]
    if phrase.count == 1 and phrase.number != article(phrase.adjacent):
        faults.append(f"says '{phrase.number} {phrase.adjacent}'")
    for thing in group:
        if (thing["class"], thing["drawing"]) not in _nouns()[noun]:
            faults.append(f"calls drawing {thing['drawing']} ({thing['class']}) a {noun}")
        if phrase.color is not None and phrase.color != thing["color"]:
            faults.append(f"says {phrase.color}, the {noun} is {thing['color']}")
        if phrase.size is not None and phrase.size not in SIZES.get(thing["size"], ()):
            faults.append(f"says {phrase.size}, the {noun} is {thing['size']} ({_extent(thing):.2f} of the frame)")
    return faults


def _check_relation(words: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    first, second = ([_centre(thing) for thing in group] for group in groups)
    holds = {
        "left of": max(x for x, _ in first) < min(x for x, _ in second),
        "right of": min(x for x, _ in first) > max(x for x, _ in second),
        "above": max(y for _, y in first) < min(y for _, y in second),
        "below": min(y for _, y in first) > max(y for _, y in second),
    }
    if words == "and":
        return []
    if words in SIDEWAYS:
        return [] if holds["left of"] or holds["right of"] else [f"says '{words}' of things not side by side"]
    for relation, known in RELATION_WORDS.items():
        if words in known:
            return [] if holds[relation] else [f"says '{words}', which is not so"]
    return [f"'{words}' is no relation"]


def _nouns() -> dict[str, set[tuple[str, str]]]:
    """Map every noun to its (class, drawing) pairs."""
    result: dict[str, set[tuple[str, str]]] = {}
    for kind, drawings in DRAWINGS.items():
        for drawing in drawings:
            for noun in (*CLASS_NOUNS[kind], *drawing.names):
                result.setdefault(noun, set()).add((kind, drawing.code))
    return result


def _class_of(phrase: Phrase) -> str:
    noun = phrase.noun if phrase.count == 1 else _singular(phrase.noun)
    return next((kind for kind, _ in _nouns().get(noun, ())), phrase.noun)


def _singular(noun: str) -> str:
    return noun if noun == "deer" else noun.removesuffix("s")


def _size_words() -> list[str]:
    return [word for words in SIZES.values() for word in words]


def _extent(thing: Mapping[str, Any]) -> float:
    left, top, right, bottom = thing["box"]
    return max(right - left, bottom - top)


def _centre(thing: Mapping[str, Any]) -> tuple[float, float]:
    left, top, right, bottom = thing["box"]
    return (left + right) / 2, (top + bottom) / 2
