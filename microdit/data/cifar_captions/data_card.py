"""Describe a selection in `card.json` for programs and in `card.md` for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from microdit.common.errors import DataError
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import signed
from microdit.common.files.text import read_json_object
from microdit.common.files.verified import read_verified

CARD, CARD_TEXT, SELECTION, DOWNLOAD = "card.json", "card.md", "selection.parquet", "download.json"


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
    selection_sha256: str  # of SELECTION

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
        try:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})
        except KeyError as error:
            raise DataError(f"{path}: {error} is missing") from None


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
    images = (download or {}).get("images", {})
    lines = [
        "# cifar-captions",
        "",
        f"{card.size:,} captioned images chosen from {card.rows_read:,} rows of `{card.source['given']}` "
        f"by microdit {version('microdit')}. Fingerprint `{card.fingerprint}`.",
        "",
        f"| class | train | val | captions that name it |{' downloaded |' if images else ''}",
        f"|---|---:|---:|---:|{'---:|' if images else ''}",
    ]
    for name in card.classes:
        cells = [*(f"{card.chosen[name][split]:,}" for split in ("train", "val")), f"{card.named[name]:,}"]
        lines.append(f"| {name} | {' | '.join(cells)} |" + (f" {images.get(name, 0):,} |" if images else ""))
    lines += [
        "",
        "A caption that names several classes is counted under the first, unless `several` is `drop`.",
        "",
        "## What was dropped",
        "",
        "In this order; each filter counts the rows that reached it. Of equal urls, and of equal `image_phash`, the "
        "row of the lowest rank is kept, and so are the lowest ranks of a class. A rank is a hash of the seed and the "
        "row's content, so the order of the files does not matter.",
        "",
        "| filter | rows dropped |",
        "|---|---:|",
        *(f"| {name} | {count:,} |" for name, count in card.dropped.items()),
        "",
        "## Settings",
        "",
        *(f"- `{name}`: {_shown(value)}" for name, value in card.identity.items() if name not in ("coyo", "words")),
        f"- word list: sha256 `{card.identity['words']}`",
        "",
        "## Source",
        "",
        *(f"- {', '.join(f'{key} {value}' for key, value in part.items())}" for part in card.source["parts"]),
        "",
        *_download_lines(download),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _download_lines(download: Mapping[str, Any] | None) -> list[str]:
    if download is None:
        return []
    lines = [
        "## Download",
        "",
        f"{download['tool']}; {download['succeeded']:,} of {download['urls']:,} urls gave an image of "
        f"{download['image_size']} x {download['image_size']} pixels.",
        "",
    ]
    if download["failed"]:
        lines += ["| why a url failed | urls |", "|---|---:|"]
        lines += [f"| {why.replace('|', '/')} | {count:,} |" for why, count in download["failed"].items()]
    return lines


def _shown(value: Any) -> str:
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
