"""Pair image files with the entries of a `prompts.json`, by names or by numbers in the names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdit.common.errors import DataError
from microdit.common.files.text import collapse_blanks, read_json
from microdit.data.image_folder.metadata import shorten_list

NUMBER = re.compile(r"[0-9]+")
BY_NAME = 'give "prompts" as {"NAME.png": "PROMPT", ...} to pair them by name'


@dataclass(frozen=True)
class Prompted:
    """One image with its prompt."""

    file: str  # relative to the folder
    prompt: str
    label: int | str | None


def read_prompted(source: Path, files: Sequence[str]) -> list[Prompted]:
    """Pair `files`, the images of a folder, with the entries of its `prompts.json`.

    `prompts` is one of
    - a mapping from file names to prompts, with `labels` also a mapping;
    - a list of {"file": ..., "prompt": ..., "label": ...};
    - a list of prompts, with `labels` also a list, for files whose names differ in one number: in the order of that
      number, so 10.png comes after 9.png.

    Args:
        source: the `prompts.json`.
        files: the images' file names.

    Returns:
        The pairs, in the same order for every kind of pairing.

    Raises:
        DataError: if an image or an entry has no partner, if the counts differ, or if the order is ambiguous; the
            message has the file and both counts.
    """
    listing = read_json(source)
    if not isinstance(listing, Mapping) or not isinstance(listing.get("prompts"), (list, Mapping)):
        raise DataError(f"{source}: needs the key 'prompts': a list, or a mapping from file names to prompts")
    if "tile" in listing:
        raise DataError(f"{source}: describes strips of several images; score files of one image each")
    prompts, labels = listing["prompts"], listing.get("labels")
    ordered = numbered_order(files)
    files = ordered or sorted(files)  # the same order for every kind of pairing
    if isinstance(prompts, Mapping):
        if not isinstance(labels, Mapping | None):
            raise DataError(f"{source}: 'labels' must be a mapping from file names, as 'prompts' is")
        return _by_mapping(source, files, prompts, labels or {})
    if prompts and isinstance(prompts[0], Mapping):
        if labels is not None:
            raise DataError(f"{source}: give each entry its own 'label' instead of a list of 'labels'")
        return _by_entries(source, files, prompts)
    if not isinstance(labels, list | None):
        raise DataError(f"{source}: 'labels' must be a list, one per prompt")
    return _by_order(source, files, prompts, labels, ordered is not None)


def _by_mapping(
    source: Path, files: Sequence[str], prompts: Mapping[str, Any], labels: Mapping[str, Any]
) -> list[Prompted]:
    unknown = [name for name in labels if name not in prompts]
    if unknown:
        raise DataError(f"{source}: 'labels' has {shorten_list(unknown)}, which 'prompts' doesn't")
    _check_names(source, files, list(prompts))
    return [Prompted(file, _prompt(prompts[file], source, file), labels.get(file)) for file in files]


def _by_entries(source: Path, files: Sequence[str], entries: Sequence[Any]) -> list[Prompted]:
    found: dict[str, Prompted] = {}
    for place, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("file"), str):
            raise DataError(f"{source}: entry {place} of 'prompts' needs the keys 'file' and 'prompt'")
        file = entry["file"]
        if file in found:
            raise DataError(f"{source}: entry {place} of 'prompts' repeats '{file}'")
        found[file] = Prompted(file, _prompt(entry.get("prompt"), source, file), entry.get("label"))
    _check_names(source, files, list(found))
    return [found[file] for file in files]


def _by_order(
    source: Path, files: Sequence[str], prompts: Sequence[Any], labels: list[Any] | None, certain: bool
) -> list[Prompted]:
    labels = [None] * len(prompts) if labels is None else labels
    if not len(files) == len(prompts) == len(labels):
        raise DataError(
            f"{source}: {len(prompts)} prompts and {len(labels)} labels for {len(files)} images "
            f"({shorten_list(files)}); one each is needed, or {BY_NAME}"
        )
    if not certain:
        raise DataError(
            f"{source}: the order of the images' names ({shorten_list(files)}) is ambiguous: they must differ in one "
            f"number, counted up in equal steps; or {BY_NAME}"
        )
    rows = zip(files, prompts, labels, strict=True)
    return [Prompted(file, _prompt(prompt, source, file), label) for file, prompt, label in rows]


def numbered_order(files: Sequence[str]) -> list[str] | None:
    """Return the names ordered by the one number in which they differ.

    Returns:
        None if they differ in more than one number, if two numbers are equal, or if the steps between the numbers are
        unequal, since then a file may be missing.
    """
    if len({NUMBER.sub("#", file) for file in files}) > 1:
        return None
    numbers = [[int(digits) for digits in NUMBER.findall(file)] for file in files]
    varying = [place for place, values in enumerate(zip(*numbers, strict=True)) if len(set(values)) > 1]
    if len(files) < 2:
        return list(files)
    if len(varying) != 1:
        return None
    values = {file: row[varying[0]] for file, row in zip(files, numbers, strict=True)}
    ordered = sorted(files, key=values.__getitem__)
    steps = {values[after] - values[before] for before, after in zip(ordered, ordered[1:], strict=False)}
    return ordered if len(steps) == 1 and 0 not in steps else None


def _check_names(source: Path, files: Sequence[str], named: Sequence[str]) -> None:
    absent = sorted(set(named) - set(files))
    if absent:
        raise DataError(
            f"{source}: {len(absent)} of {len(named)} entries match no image of the folder: {shorten_list(absent)}"
        )
    unnamed = sorted(set(files) - set(named))
    if unnamed:
        raise DataError(f"{source}: {len(unnamed)} of {len(files)} images have no prompt: {shorten_list(unnamed)}")


def _prompt(value: Any, source: Path, file: str) -> str:
    if not isinstance(value, str) or not collapse_blanks(value):
        raise DataError(f"{source}: the prompt of '{file}' must be text, got {value!r}")
    return value
