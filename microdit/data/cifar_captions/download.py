"""Download a selection's images and arrange them as a folder for `data=folder`."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from microdit.common.errors import DataError
from microdit.common.files.atomic import atomic_path, sweep, write_text
from microdit.common.files.text import read_json_object
from microdit.common.process.isolated_venv import find_python
from microdit.data.cifar_captions.config import Fetch
from microdit.data.cifar_captions.data_card import CARD_TEXT, DOWNLOAD, SELECTION, Card, card_text, read_download
from microdit.data.cifar_captions.img2dataset import LOG, TOOL, run

FETCHED = "download"
IMAGES = "images"
REQUEST = "request.json"
MAX_REASONS_LISTED = 12


def download(out: Path, card: Card, fetch: Fetch, python: Path | None, cache: Path) -> dict[str, Any]:
    """Download a selection's images into `out/images`, resuming an earlier call.

    Args:
        out: folder of the selection.
        card: its record.
        fetch: how images are downloaded and resized.
        python: a Python that has img2dataset; None installs one in `cache`, once.
        cache: where it is installed.

    Returns:
        The content of `download.json`: urls, images per class, failures by reason.

    Raises:
        DataError: if another process writes to `out`, it has images of other settings, img2dataset can't be installed
            or fails, or no url gives an image.
    """
    folder = out / FETCHED
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _download(out, folder, card, fetch, python, cache)
    except Timeout as error:
        raise DataError(f"{out} is being filled by another command; wait for it") from error


def _download(out: Path, folder: Path, card: Card, fetch: Fetch, python: Path | None, cache: Path) -> dict[str, Any]:
    _same_request(folder / REQUEST, card, fetch)
    shards, expected = folder / "shards", math.ceil(card.size / fetch.shard_size)
    done = len(list(shards.glob("*_stats.json")))
    tool = (read_download(out) or {}).get("tool")
    if done < expected or not tool:
        interpreter, version = find_python(TOOL, python, cache)
        tool = f"img2dataset {version}"
        run(interpreter, out / SELECTION, folder, fetch)
        done = len(list(shards.glob("*_stats.json")))
        if done < expected:
            raise DataError(
                f"img2dataset completed {done} of {expected} shards; repeat the command to resume "
                f"(its output: {folder / LOG})"
            )
    rows, failed = _outcomes(out, shards)
    if not rows:
        raise DataError(f"none of {card.size} urls gave an image: {_reasons(failed)}")
    _lay_out(out / IMAGES, rows)
    images = Counter(row["label"] for row, _ in rows)
    report = {
        "tool": tool,
        "fingerprint": card.fingerprint,
        "image_size": fetch.image_size,
        "urls": card.size,
        "succeeded": len(rows),
        "failed": dict(failed.most_common()),
        "images": {name: images[name] for name in card.classes},
        "splits": dict(Counter(row["split"] for row, _ in rows)),
    }
    write_text(out / CARD_TEXT, card_text(card, report))
    write_text(out / DOWNLOAD, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _same_request(path: Path, card: Card, fetch: Fetch) -> None:
    """Raise DataError if settings that determine the shards' content differ from those of earlier calls."""
    settings = {name: asdict(fetch)[name] for name in ("image_size", "min_size", "shard_size")}
    wanted = {"fingerprint": card.fingerprint, **settings}
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    there = read_json_object(path)
    for key, value in wanted.items():
        if there.get(key) != value:
            raise DataError(
                f"{path.parent} was begun with {key} {there.get(key)!r}, not {value!r}; remove that folder to fetch "
                "all images again"
            )


def _outcomes(out: Path, shards: Path) -> tuple[list[tuple[dict[str, Any], Path]], Counter[str]]:
    """Return the rows that have an image, each with the image's path, and the failures by reason."""
    chosen = {row["url"]: row for row in pq.read_table(out / SELECTION).to_pylist()}
    rows: list[tuple[dict[str, Any], Path]] = []
    failed: Counter[str] = Counter()
    for shard, row in _shard_rows(shards):
        image = shard / f"{row['key']}.jpg"
        if row["status"] == "success" and image.is_file():
            rows.append((chosen.pop(row["url"]), image))
        else:
            chosen.pop(row["url"], None)
            failed[_reason(row)] += 1
    if chosen:
        failed["no result recorded"] += len(chosen)
    return rows, Counter(dict(failed.most_common(MAX_REASONS_LISTED)) | _rest(failed))


def _shard_rows(shards: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for table in sorted(shards.glob("*.parquet")):
        for row in pq.read_table(table, columns=["url", "key", "status", "error_message"]).to_pylist():
            yield table.with_suffix(""), row


def _reason(row: dict[str, Any]) -> str:
    if row["status"] == "success":
        return "image file is missing"
    reason = " ".join(str(row["error_message"] or "no message").split())
    # Without addresses and sizes, which differ between urls, equal causes are counted together.
    return f"{row['status']}: {re.sub(r'0x[0-9a-f]+|(?<![0-9])[0-9]{4,}', '…', reason)[:100]}"


def _rest(failed: Counter[str]) -> dict[str, int]:
    rest = sum(failed.values()) - sum(count for _, count in failed.most_common(MAX_REASONS_LISTED))
    return {"other reasons": rest} if rest else {}


def _reasons(failed: Counter[str]) -> str:
    return ", ".join(f"{why}: {count}" for why, count in failed.most_common(3))


def _lay_out(target: Path, rows: list[tuple[dict[str, Any], Path]]) -> None:
    """Make one folder per class, and `metadata.jsonl`; files are hard links if the file system has them."""
    sweep(target.parent)
    with atomic_path(target) as temporary:
        lines = []
        for row, image in sorted(rows, key=lambda pair: pair[0]["key"]):
            name = f"{row['label']}/{row['key']}{image.suffix}"
            (temporary / row["label"]).mkdir(parents=True, exist_ok=True)
            _link(image, temporary / name)
            entry = {"file_name": name, "text": row["caption"], "label": row["label"], "split": row["split"]}
            lines.append(json.dumps(entry | {"classes": row["classes"], "url": row["url"]}, ensure_ascii=False))
        (temporary / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
