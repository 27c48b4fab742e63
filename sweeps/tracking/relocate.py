"""Update the paths in stores and files after their folder was moved or copied (`microdit-sweep relocate`).

MLflow stores absolute URIs of artifacts: it resolves a relative one when an experiment is created. The original folder
is derived from those URIs, so that older stores can be relocated too.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from microdit.common.contract import CONFIG_FILE, EXPERIMENT_PREFIX, Tag
from microdit.common.errors import ConfigError
from microdit.common.files.atomic import write_text
from microdit.common.stores.sqlite_uri import SCHEME, sqlite_path, sqlite_uri
from sweeps.tracking.sqlite_files import rewritten
from sweeps.tracking.uris import own_file, sqlite_creation_lock

ARTIFACTS = "mlartifacts"
PATH_TAGS = (Tag.OUTPUT_DIR, Tag.LOG, Tag.RERUN, Tag.TRAINED_IN)
Move = Callable[[Any], Any]


def relocate(root: Path, uri: str, queue_uri: str) -> int:
    """Rewrite every path below an old root in both stores and in the runs' files.

    A second call changes nothing.

    Args:
        root: the present root folder.
        uri: URI of the MLflow store.
        queue_uri: URI of the Optuna storage.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: if the MLflow store is not a sqlite file, or the file is missing.
    """
    new = root.resolve()
    files = [file for file in (own_file(uri), own_file(queue_uri)) if file is not None and file.is_file()]
    if own_file(uri) not in files:
        raise ConfigError(f"relocate needs the sqlite store of the folder that was moved; {root}/mlflow.db is missing")
    old = [place for place in former_roots(files[0]) if place != new]
    for place in old:
        changed = 0
        for file, rewrite in zip(files, (_rewrite_mlflow, _rewrite_optuna), strict=False):
            with sqlite_creation_lock(sqlite_uri(file)), rewritten(file) as database:
                changed += rewrite(database, place, new)
        changed += _rewrite_files(new, place)
        print(f"{place} -> {new}: {changed} entries rewritten; restart a microdit-sweep ui that shows it")
    if not old:
        print(f"{new}: every path is up to date")
    return 0


def former_roots(file: Path) -> list[Path]:
    """Return the root folders of the artifacts of an MLflow store's experiments."""
    with closing(sqlite3.connect(file, timeout=60)) as database:
        rows = database.execute(
            "SELECT name, artifact_location FROM experiments WHERE name LIKE ? ORDER BY experiment_id",
            (f"{EXPERIMENT_PREFIX}%",),
        ).fetchall()
    found = []
    for name, location in rows:
        parts = urlsplit(location or "")
        path, ending = unquote(parts.path), f"/{ARTIFACTS}/{name}"
        if parts.scheme == "file" and path.endswith(ending):
            found.append(Path(path.removesuffix(ending) or "/"))
    return list(dict.fromkeys(found))


def advice(file: Path, root: Path) -> str:
    """Return one line of advice if the folder of a store was moved or copied, else "".

    Args:
        file: the store's sqlite file.
        root: the present root folder.
    """
    new = root.resolve()
    if file.resolve().parent != new:
        return ""
    moved = [place for place in former_roots(file) if place != new and (new / ARTIFACTS).is_dir()]
    if not moved:
        return ""
    return f"{root} was moved or copied from {moved[0]}; update its paths with: microdit-sweep relocate root={root}"


def mover(old: Path, new: Path) -> Move:
    """Return a function that replaces a folder in paths and URIs.

    Args:
        old: the folder to replace.
        new: its replacement.

    Returns:
        A function of a string, mapping or list; the latter are rewritten at any depth.
    """
    before, after = str(old), str(new)
    paths = re.compile(rf"(?<![\w./-]){re.escape(before)}(?=/|$)")

    def move(value: Any) -> Any:
        if isinstance(value, str):
            if SCHEME.match(value):
                with suppress(ConfigError):  # not a valid URI
                    if (path := sqlite_path(value)) is not None:
                        return sqlite_uri(move(str(path)))
                return value
            return paths.sub(lambda _: after, value)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        return [move(item) for item in value] if isinstance(value, list) else value

    return move


def _rewrite_mlflow(database: sqlite3.Connection, old: Path, new: Path) -> int:
    before, after = f"{old.as_uri().rstrip('/')}/", f"{new.as_uri().rstrip('/')}/"
    changed = 0
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
        changed += database.execute(statement, (after, len(before) + 1, len(before), before)).rowcount
    move = mover(old, new)
    marks = ", ".join("?" for _ in PATH_TAGS)
    for run, key, value in database.execute(
        f"SELECT run_uuid, key, value FROM tags WHERE key IN ({marks})", PATH_TAGS
    ).fetchall():
        if move(value) != value:
            database.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ?", (move(value), run, key))
            changed += 1
    return changed


def _rewrite_optuna(database: sqlite3.Connection, old: Path, new: Path) -> int:
    move, changed = mover(old, new), 0
    for table, number in (
        ("trial_user_attributes", "trial_user_attribute_id"),
        ("study_user_attributes", "study_user_attribute_id"),
    ):
        for row, text in database.execute(f"SELECT {number}, value_json FROM {table}").fetchall():
            value = json.loads(text)
            if move(value) != value:
                database.execute(
                    f"UPDATE {table} SET value_json = ? WHERE {number} = ?", (json.dumps(move(value)), row)
                )
                changed += 1
    return changed


def _rewrite_files(root: Path, old: Path) -> int:
    """Rewrite the index of trained checkpoints and each run's config.yaml."""
    move, changed = mover(old, root), 0
    for note in sorted((root / ".trained").glob("*")):
        if note.is_file() and note.suffix != ".lock":
            text = note.read_text(encoding="utf-8")
            if move(text) != text:
                write_text(note, move(text))
                changed += 1
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in (ARTIFACTS, "checkpoints", "samples")]
        if CONFIG_FILE in files:
            changed += _rewrite_config(Path(folder) / CONFIG_FILE, move)
    return changed


def _rewrite_config(path: Path, move: Move) -> int:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return 0
    if not isinstance(values, dict) or move(values) == values:
        return 0
    write_text(path, yaml.safe_dump(move(values), sort_keys=False, allow_unicode=True))
    return 1
