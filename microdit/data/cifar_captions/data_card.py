"""Describe a selection in `card.json` for programs and in `card.md` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from microdit.common.errors import DataError
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import signed
from microdit.common.files.text import read_json_object
from microdit.common.files.verified import read_verified

CARD, CARD_TEXT, SELECTION, DOWNLOAD = "card.json", "card.md", "selection.parquet", "download.json"
CARD_TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True)
class Card:
    """The record of one selection."""

    fingerprint: str
    identity: Mapping[str, Any]
    classes: tuple[str, ...]
    rows_read: int
    dropped: Mapping[str, int]
    """Rows that each filter dropped, in the filters' order."""
    chosen: Mapping[str, Mapping[str, int]]
    """Chosen rows per label and split."""
    named: Mapping[str, int]
    """Chosen rows whose caption names the class, whatever their label."""
    source: Mapping[str, Any]
    selection_sha256: str = ""  # of SELECTION; older cards have none

    @property
    def size(self) -> int:
        """Return the number of chosen rows."""
        return sum(sum(splits.values()) for splits in self.chosen.values())

    @classmethod
    def load(cls, path: Path) -> Card:
        """Return the card in a `card.json`.

        Raises:
            DataError: if it is damaged or lacks an entry.
        """
        stored = read_verified(path)
        absent = [field.name for field in fields(cls) if field.name not in stored and field.default is MISSING]
        if absent:
            raise DataError(f"{path}: '{absent[0]}' is missing")
        return cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})


def write_card(out: Path, card: Card) -> None:
    """Write both cards; `card.json` is last and marks the selection as complete.

    Args:
        out: folder of the selection.
        card: its record.
    """
    write_text(out / CARD_TEXT, card_text(card, read_download(out)))
    tools = {name: version(name) for name in ("microdit", "pyarrow")}
    write_text(out / CARD, signed({"name": "cifar-captions", **asdict(card), "made_with": tools}) + "\n")


def read_download(out: Path) -> dict[str, Any] | None:
    """Return the `download.json` of a selection; None before the download."""
    path = out / DOWNLOAD
    return read_json_object(path) if path.is_file() else None


def card_text(card: Card, download: Mapping[str, Any] | None) -> str:
    """Return a card as Markdown.

    Args:
        card: the record of a selection.
        download: the content of `download.json`; None before the download.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(CARD_TEMPLATE.read_text(encoding="utf-8"))
    images = (download or {}).get("images", {})
    text = template.render(card=card, download=download, images=images, version=version("microdit"))
    return text.rstrip() + "\n"
