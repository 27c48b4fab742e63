"""Detect that a sqlite file was removed or replaced while connections to it are open.

sqlite keeps writing to a removed file without an error, and opens a missing one as a new, empty database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.exc import DisconnectionError

FILE = "microdit.file"  # key of a pooled connection's info: device and inode of its file


class StoreGone(Exception):
    """The file of a store is missing; it may come back, for example after a network file system was unmounted."""


def watch(engine: Any, path: Path) -> None:
    """Raise StoreGone when `engine` needs `path` and it is missing; reconnect if another file has taken its place."""

    def identity() -> tuple[int, int]:
        try:
            facts = path.stat()
        except OSError as error:
            raise StoreGone(f"{path} is missing ({error.strerror}); was it removed or moved?") from None
        return facts.st_dev, facts.st_ino

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connecting(_dialect: Any, _record: Any, _args: Any, _options: Any) -> None:
        identity()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(_connection: Any, record: Any) -> None:
        record.info[FILE] = identity()

    @sqlalchemy.event.listens_for(engine, "checkout")
    def taken(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get(FILE) != identity():
            raise DisconnectionError(f"{path} was replaced")

    engine.dispose()  # earlier connections have no such key
