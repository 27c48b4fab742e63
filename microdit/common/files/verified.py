"""Verify files by their content before use, once until they change.

Verified files are remembered in memory, and on disk if a folder is given. A file counts as unchanged while its
`digests.file_state` is the same: size, time of modification, time of the inode's last change (which no program can
set), inode and device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from microdit.common.errors import DataError
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import file_state, verified
from microdit.common.files.text import read_json_object

CHECKED = "checked"  # folder in a cache: one file per set of verified files


def read_verified(path: Path) -> dict[str, Any]:
    """Read a JSON object and verify its digest, which older files lack.

    Returns:
        The values without the digest.

    Raises:
        DataError: if it can't be read or its digest is wrong.
    """
    values = read_json_object(path)
    try:
        return verified(values, optional=True)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


_good: set[str] = set()


def find_damaged(
    files: Sequence[Path], check: Callable[[Path], None], memory: Path | None = None, what: str = ""
) -> list[tuple[Path, str]]:
    """Return the files that a check rejects, each with the reason.

    Args:
        files: the files.
        check: raises DataError for a damaged file.
        memory: folder that records verified files; None records them in memory only.
        what: identifies everything else that `check` depends on.

    Returns:
        (file, reason) for each damaged or missing file.
    """
    if not files:
        return []
    facts = [(str(path.absolute()), file_state(path)) for path in files if path.exists()]
    key = hashlib.sha256(repr((what, [str(path) for path in files], facts)).encode()).hexdigest()[:32]
    if key in _good or (memory is not None and (memory / key).is_file()):
        return []
    bad = []
    for path in files:
        try:
            check(path)
        except FileNotFoundError:
            bad.append((path, f"{path}: no such file"))
        except DataError as error:
            bad.append((path, str(error)))
    if not bad:
        _good.add(key)
        if memory is not None:
            write_text(memory / key, "".join(f"{path}\n" for path, _ in facts))
    return bad
