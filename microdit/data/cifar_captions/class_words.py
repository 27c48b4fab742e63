"""Find the classes that a caption names, by a list of words and of phrases that mean something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from microdit.common.errors import DataError, nearest
from microdit.common.files.text import check_characters, read_text
from microdit.common.files.yaml_text import load_yaml
from microdit.data.cifar_captions.config import WORDS_FILE

ENTRY_KEYS = ("words", "not")
TOKEN = re.compile(r"(\w+)(?:['’]s(?!\w))?")
# Pattern for a blank in a phrase; not \s, which differs between the two regex engines.
BLANK = "[ \\t\\r\\n\u00a0\u2010\u2011-]+"


@dataclass(frozen=True)
class ClassPhrases:
    """Phrases and the classes that they name."""

    classes: tuple[str, ...]
    meaning: Mapping[str, str | None]
    """Class of each phrase, None for phrases that name no class. Phrases are in lower case; plurals are included."""

    def find(self, caption: str) -> tuple[str, ...]:
        """Find the classes that a caption names.

        Returns:
            Each class once, in the order of first mention.
        """
        found: dict[str, None] = {}
        text, start = caption.lower(), 0
        while token := TOKEN.search(text, start):
            match = self._longest(text, token)
            start = (match or token).end()
            if match and (named := self.meaning[_plain(match[0])]) is not None:
                found[named] = None
        return tuple(found)

    def mentions(self, captions: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Preselect captions: fast, with false positives, without false negatives.

        Args:
            captions: (N,) strings.

        Returns:
            (N,) booleans, whether a caption may name a class.
        """
        phrases = [phrase for phrase, named in self.meaning.items() if named is not None]
        # In this engine letters beyond ASCII end a word, in Python's they don't; `find` rejects those captions.
        pattern = f"(?:^|[^a-z0-9_])(?:{_alternatives(phrases)})(?:$|[^a-z0-9_])"
        return pc.match_substring_regex(captions, pattern, ignore_case=True)

    def _longest(self, text: str, token: re.Match[str]) -> re.Match[str] | None:
        firsts = (token[1],) if token.end() == token.end(1) else (token[1] + "s", token[1])
        for first in firsts:
            if (phrases := self._by_first_word.get(first)) and (match := phrases.match(text, token.start())):
                return match
        return None

    @cached_property
    def _by_first_word(self) -> Mapping[str, re.Pattern[str]]:
        """Return one pattern per first word; a single pattern for all phrases takes 12 times as long."""
        groups: dict[str, list[str]] = {}
        for phrase in self.meaning:
            groups.setdefault(_first_word(phrase), []).append(phrase)
        return {first: re.compile(rf"(?:{_alternatives(phrases)})(?!\w)") for first, phrases in groups.items()}


def load_words(path: Path = WORDS_FILE) -> ClassPhrases:
    """Read a word list such as `class_words.yaml`.

    Returns:
        Its phrases with their plurals.

    Raises:
        DataError: if it is malformed; the message has the file and the entry.
    """
    text = read_text(path, name=f"the word list {path}")
    listed = load_yaml(text, f"the word list {path}", DataError)
    if not isinstance(listed, dict) or not listed:
        raise DataError(f"the word list {path} must map each class to its 'words' and, if any, 'not'")
    meaning: dict[str, str | None] = {}
    for name, entry in listed.items():
        if Path(str(name)).name != str(name) or "\\" in str(name):
            raise DataError(f"{path}: the class '{name}' can't name a folder: give it without slashes")
        for key, phrases in _entries(entry, f"{path}, class '{name}'"):
            for phrase in phrases:
                check_characters(phrase, f"{path}, class '{name}'")
                for form in (_plain(phrase), _plural(_plain(phrase))):
                    _add(meaning, form, str(name) if key == "words" else None, path)
    return ClassPhrases(tuple(str(name) for name in listed), meaning)


def _entries(entry: Any, where: str) -> Iterable[tuple[str, list[str]]]:
    if not isinstance(entry, dict) or not entry.get("words"):
        raise DataError(f"{where}: 'words' is missing or empty")
    for key, phrases in entry.items():
        if key not in ENTRY_KEYS:
            raise DataError(f"{where}: unknown key '{key}'; {nearest(key, ENTRY_KEYS)}")
        if not isinstance(phrases, list):
            raise DataError(f"{where}: '{key}' must be a list of words or phrases")
        for phrase in phrases:
            if not isinstance(phrase, str) or not _first_word(_plain(phrase)):
                raise DataError(f"{where}: {phrase!r} under '{key}' is no text that begins with a letter or digit")
        yield key, phrases


def _add(meaning: dict[str, str | None], form: str, named: str | None, path: Path) -> None:
    if meaning.setdefault(form, named) != named:
        other = meaning[form]
        raise DataError(f"{path}: '{form}' stands for '{named or 'no class'}' and also for '{other or 'no class'}'")


def _plain(phrase: str) -> str:
    return re.sub(BLANK, " ", re.sub("['’]", "", phrase.lower())).strip()


def _first_word(phrase: str) -> str:
    match = re.match(r"\w+", phrase)
    return match[0] if match else ""


def _plural(phrase: str) -> str:
    head, _, word = phrase.rpartition(" ")
    if re.search(r"(s|x|z|ch|sh)$", word):
        word += "es"
    elif re.search(r"[^aeiou]y$", word):
        word = word[:-1] + "ies"
    else:
        word += "s"
    return f"{head} {word}".strip()


def _alternatives(phrases: Iterable[str]) -> str:
    """Return a pattern of phrases, longest first, since both engines take the first alternative that matches."""
    ordered = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "|".join(_loose(phrase) for phrase in ordered)


def _loose(phrase: str) -> str:
    """Return a pattern of a phrase that allows hyphens and repeated blanks, and apostrophes as in "bird's eye"."""
    words = [re.sub(r"(?<=\w)s$", "['’]?s['’]?", re.escape(word)) for word in phrase.split(" ")]
    return BLANK.join(words)
