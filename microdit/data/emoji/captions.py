"""Write captions of scenes. Every statement of a caption is true of its scene."""

from __future__ import annotations

from microdit.data.emoji.art import BY_CODE
from microdit.data.emoji.scene import PLAIN, Group, Scene, SceneObject, UniformDraws

NUMBERS = {1: "a", 2: "two", 3: "three"}
CLASS_NOUNS = {
    "airplane": ("airplane", "plane"),
    "automobile": ("car",),
    "bird": ("bird",),
    "cat": ("cat",),
    "deer": ("deer",),
    "dog": ("dog",),
    "frog": ("frog",),
    "horse": ("horse",),
    "ship": ("ship", "boat"),
    "truck": ("truck",),
}
SIZES = {"small": ("small", "little"), "big": ("big", "large")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SIDEWAYS = ("next to", "beside")
PLAIN_WORDS = ("on a {} background", "on a {} background", "against a {} background", "in front of a {} background")
SCENERY_WORDS = {
    "meadow": ("in a green meadow", "on green grass", "on the grass"),
    "sea": ("on the sea", "on blue water", "at sea"),
    "desert": ("in the desert", "on yellow sand", "on the sand"),
    "snow": ("in the snow", "on white snow"),
    "road": ("on a gray road", "on the road", "on the street"),
    "sky": ("in the sky", "in a blue sky", "in the blue sky"),
    "night": ("at night", "in the dark", "under a night sky"),
}
# (weight, name, pattern): {s} is the subject, {b} the background, {is} the verb.
FORMS = (
    (0.46, "plain", "{s} {b}"),
    (0.10, "picture", "a picture of {s} {b}"),
    (0.08, "drawing", "a drawing of {s} {b}"),
    (0.06, "image", "an image of {s} {b}"),
    (0.10, "there is", "there {is} {s} {b}"),
    (0.08, "background first", "{b}, {s}"),
    (0.12, "no background", "{s}"),
)


def describe(scene: Scene, draws: UniformDraws, specific_names: bool) -> tuple[str, str]:
    """Write a caption of a scene.

    Args:
        scene: the scene.
        draws: the scene's remaining random draws.
        specific_names: whether drawings may be called "taxi" or "owl" instead of "car" and "bird".

    Returns:
        The caption, and the name of its form in `FORMS`.
    """
    parts = [
        _group_phrase(group, [t for t in scene.things if t.group == index], draws, specific_names)
        for index, group in enumerate(scene.groups)
    ]
    subject = parts[0] if len(parts) == 1 else f"{parts[0]} {_relation_words(scene, draws)} {parts[1]}"
    where = _background_words(scene.backdrop.name, draws)
    _, form, pattern = FORMS[draws.weighted([weight for weight, _, _ in FORMS])]
    verb = "is" if scene.groups[0].count == 1 else "are"
    return pattern.format(s=subject, b=where, **{"is": verb}), form


def _group_phrase(group: Group, things: list[SceneObject], draws: UniformDraws, specific_names: bool) -> str:
    nouns: tuple[str, ...] = CLASS_NOUNS[group.kind]
    wants_specific, wants_size, wants_color = draws.chance(0.4), draws.chance(0.85), draws.chance(0.8)
    same_drawing = len({thing.code for thing in things}) == 1
    if specific_names and wants_specific and same_drawing:
        nouns = BY_CODE[things[0].code].names or nouns
    words = [draws.pick(nouns) if group.count == 1 else plural(draws.pick(nouns))]
    colors = {thing.color for thing in things}
    color = things[0].color if len(colors) == 1 else None
    if color is not None and wants_color:
        words.insert(0, color)
    size_word = draws.pick(SIZES[group.size or "small"])
    if group.size is not None and wants_size:
        words.insert(0, size_word)
    number = article(words[0]) if group.count == 1 else NUMBERS[group.count]
    return " ".join([number, *words])


def _relation_words(scene: Scene, draws: UniformDraws) -> str:
    assert scene.relation is not None
    exact, loose = draws.pick(RELATION_WORDS[scene.relation]), draws.pick(SIDEWAYS)
    which = draws.weighted((0.8, 0.08, 0.12))
    if which == 1 and scene.relation in ("left of", "right of"):
        return loose
    return "and" if which == 2 else exact


def _background_words(name: str, draws: UniformDraws) -> str:
    if name in PLAIN:
        pattern = draws.pick(PLAIN_WORDS)
        return pattern.replace(" a {}", f" {article(name)} {name}")
    return draws.pick(SCENERY_WORDS[name])


def article(word: str) -> str:
    """Return "a" or "an" for this word."""
    return "an" if word[0] in "aeiou" else "a"


def plural(noun: str) -> str:
    """Return the plural of a noun of this vocabulary."""
    return noun if noun == "deer" else noun + "s"
