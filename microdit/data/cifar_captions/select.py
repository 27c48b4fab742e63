"""Choose rows of COYO-700M's metadata, before anything is downloaded."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from microdit.common.errors import DataError
from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.files.digests import content_digest, sha256
from microdit.common.files.text import collapse_blanks
from microdit.common.rng import derive_seed
from microdit.data.cifar_captions.candidates import STREAM, CandidatePool
from microdit.data.cifar_captions.class_words import ClassPhrases, load_words
from microdit.data.cifar_captions.config import Filters, Request
from microdit.data.cifar_captions.coyo import Source, open_source
from microdit.data.cifar_captions.data_card import CARD, SELECTION, Card, write_card
from microdit.data.cifar_captions.filters import RowFilter, steps
from microdit.data.cifar_captions.urls import REASONS, rejection_reason

READ_COLUMNS = ("id", "url", "text", "width", "height", "image_phash")
REPORT_SECONDS = 5.0
ONLY_PHRASE = "class word only within another phrase"
SEVERAL_CLASSES = "several classes"
NUL = "caption with a NUL character"
URL_RULE = 1  # version of the rule in urls.py; a selection made by another version is not downloaded


def select(request: Request, out: Path) -> Card:
    """Write `selection.parquet`, `card.json` and `card.md`, unless they exist.

    Args:
        request: what to choose.
        out: folder of the selection.

    Returns:
        The record of the selection.

    Raises:
        DataError: if `out` has the selection of another request, the metadata or word list can't be read, or no row
            passes.
    """
    words = load_words(request.words)
    source = open_source(request.coyo)
    identity = _identity(request, source)
    if (out / CARD).is_file():
        return _found(out, identity)
    todo = steps(request.filters, words)
    columns = list(dict.fromkeys([*READ_COLUMNS, *(column for step in todo for column in step.columns)]))
    source.check(columns)
    counts = Counts(source.rows)
    sweep(out)
    with atomic_path(out / SELECTION) as temporary:
        pool = CandidatePool(temporary.with_name("candidates.parquet"), request.seed, words.classes)
        for batch in source.batches(columns):
            _take(batch, todo, words, request.filters, pool, counts)
            counts.report(len(pool))
        counts.report(len(pool), last=True)
        chosen, by_rule = pool.choose(request.per_class, request.balance)
        counts.dropped.update(by_rule)
        if not len(chosen):
            raise DataError(f"--coyo {request.coyo}: no row of {counts.read} passes; {_drops(counts.dropped)}")
        chosen = chosen.append_column("split", pa.array(_splits(chosen, request)))
        pq.write_table(chosen, temporary, compression="zstd")
    card = Card(
        fingerprint=_fingerprint(chosen),
        identity=identity,
        classes=words.classes,
        rows_read=counts.read,
        dropped=dict(counts.dropped),
        chosen={name: _per_split(chosen, name) for name in words.classes},
        named=_named(chosen, words.classes),
        source={"given": request.coyo, "parts": source.describe()},
        selection_sha256=content_digest(out / SELECTION),
    )
    write_card(out, card)
    return card


def _identity(request: Request, source: Source) -> dict[str, Any]:
    """Return what identifies a request, for comparison with an existing selection."""
    settings = {name: value for name, value in asdict(request).items() if name not in ("coyo", "words", "filters")}
    settings |= {f"filters.{name}": value for name, value in asdict(request.filters).items()}
    return settings | {"url_rule": URL_RULE, "words": sha256(request.words), "coyo": source.identity}


@dataclass
class Counts:
    """Rows read, and rows dropped by each filter, in the filters' order."""

    total: int | None
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _started: float = field(default_factory=time.perf_counter)
    _reported: float = field(default_factory=time.perf_counter)

    def report(self, candidates: int, last: bool = False) -> None:
        """Print a line of progress to stderr every few seconds.

        Args:
            candidates: number of rows that passed so far.
            last: print in any case.
        """
        now = time.perf_counter()
        if last or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            of = f" of {self.total:,}" if self.total is not None else ""
            rate = self.read / (now - self._started)
            print(f"{self.read:,}{of} rows, {rate:,.0f} rows/s, {candidates:,} candidates", file=sys.stderr)


def _take(
    batch: pa.RecordBatch,
    todo: list[RowFilter],
    words: ClassPhrases,
    filters: Filters,
    pool: CandidatePool,
    counts: Counts,
) -> None:
    counts.read += len(batch)
    for step in todo:
        kept = batch.filter(step.keep(batch))
        counts.dropped[step.name] += len(batch) - len(kept)
        batch = kept
    for name in (*REASONS, NUL, ONLY_PHRASE):
        counts.dropped[name] += 0  # the card lists all of them, in this order
    rows = []
    for row in batch.select(list(READ_COLUMNS)).to_pylist():
        row["caption"] = collapse_blanks(row.pop("text"))
        classes = words.find(row["caption"])
        if reason := rejection_reason(row["url"]):
            counts.dropped[reason] += 1
        elif "\0" in row["caption"]:
            counts.dropped[NUL] += 1
        elif not classes:
            counts.dropped[ONLY_PHRASE] += 1
        elif filters.several == "drop" and len(classes) > 1:
            counts.dropped[SEVERAL_CLASSES] += 1
        else:
            rows.append(row | {"label": classes[0], "classes": list(classes)})
    pool.add(rows)


def _splits(chosen: pa.Table, request: Request) -> list[str]:
    """Assign each image to train or val by a hash of its identity, and at least one of several to val."""
    draws = [
        derive_seed(request.seed, f"{STREAM}/split/{phash or url}") / 2**63
        for phash, url in zip(chosen["image_phash"].to_pylist(), chosen["url"].to_pylist(), strict=True)
    ]
    held_out = {i for i, draw in enumerate(draws) if draw < request.val_fraction}
    if not held_out and len(draws) > 1:
        held_out = {min(range(len(draws)), key=draws.__getitem__)}
    return ["val" if i in held_out else "train" for i in range(len(draws))]


def _fingerprint(chosen: pa.Table) -> str:
    """Return a digest of the chosen rows in order, which does not depend on the source's files and batches."""
    digest = hashlib.sha256()
    for batch in chosen.select(["id", "url", "caption", "label", "classes", "split"]).to_batches():
        for row in batch.to_pylist():
            digest.update(json.dumps(list(row.values())).encode())
    return digest.hexdigest()


def _per_split(chosen: pa.Table, name: str) -> dict[str, int]:
    splits = chosen.filter(pc.equal(chosen["label"], name))["split"]
    return {split: int(pc.sum(pc.equal(splits, split)).as_py() or 0) for split in ("train", "val")}


def _named(chosen: pa.Table, classes: tuple[str, ...]) -> dict[str, int]:
    counted = Counter(chosen["classes"].combine_chunks().flatten().to_pylist())
    return {name: counted[name] for name in classes}


def _found(out: Path, identity: Mapping[str, Any]) -> Card:
    try:
        card = Card.load(out / CARD)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{out / CARD} can't be read ({error}); remove it, or choose another --out") from error
    differing = [key for key in identity if card.identity.get(key) != json.loads(json.dumps(identity[key]))]
    if differing:
        key = differing[0]
        now = "other files" if key in ("coyo", "words") else f"{identity[key]!r}, there {card.identity.get(key)!r}"
        raise DataError(f"{out} holds another selection: '{key}' is {now}; choose another --out or remove that folder")
    if not (out / SELECTION).is_file():
        raise DataError(f"{out} has {CARD} but no {SELECTION}; remove {CARD} to select again")
    if card.selection_sha256 not in ("", content_digest(out / SELECTION)):
        raise DataError(
            f"{out / SELECTION}: wrong checksum: the file was changed or damaged; remove {out / CARD} to select again"
        )
    return card


def _drops(dropped: Mapping[str, int]) -> str:
    return "dropped by " + ", ".join(f"{name}: {count}" for name, count in dropped.items() if count)
