"""Detect that a sqlite file was removed or replaced while connections to it are open.

sqlite keeps writing to a removed file without an error, and opens a missing one as a new, empty database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.exc import DisconnectionError

FILE_KEY = "microdit.file"  # key of a pooled connection's info: device and inode of its file


class StoreGone(Exception):
    """The file of a store is missing.

    It may return, for example after a network file system was unmounted.
    """


def watch(engine: Any, path: Path) -> None:
    """Make every use of a store's connections check its file.

    Connections that are still open to a replaced file are closed and opened again.

    Args:
        engine: SQLAlchemy's engine of the store.
        path: the store's sqlite file.

    Raises:
        StoreGone: if the file is missing; raised when a connection is used, not by this function.
    """

    def identity() -> tuple[int, int]:
        try:
            status = path.stat()
        except OSError as error:
            raise StoreGone(f"{path} is missing ({error.strerror}); was it removed or moved?") from None
        return status.st_dev, status.st_ino

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connecting(_dialect: Any, _record: Any, _args: Any, _options: Any) -> None:
        identity()

    @sqlalchemy.event.listens_for(engine, "connect")
    def connected(_connection: Any, record: Any) -> None:
        record.info[FILE_KEY] = identity()

    @sqlalchemy.event.listens_for(engine, "checkout")
    def taken(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.get(FILE_KEY) != identity():
            raise DisconnectionError(f"{path} was replaced")

    engine.dispose()  # earlier connections have no such key
