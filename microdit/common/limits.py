"""Upper bounds of settings, far above any machine: a slip of the keyboard must not become a hang or a full memory."""

from __future__ import annotations

import os

from microdit.common.errors import ConfigError, named, shown

MAX_NAME_BYTES = 255  # of one part of a path, on all common file systems


def check_limits(path: str, config: object, **most: float) -> None:
    """Raise ConfigError if a number of `config` exceeds its bound in `most` in size, or is NaN; None is no number.

    `path` is the dotted key of `config`, for messages.
    """
    for key, limit in most.items():
        value = getattr(config, key)
        if value is not None and not -limit <= value <= limit:
            bound = f"at least {-limit:,}" if value < 0 else f"at most {limit:,}"
            raise ConfigError(f"'{path}.{key}' is {shown(value)}; it must be {bound}")


def check_path(key: str, path: str | None) -> None:
    """Raise ConfigError for a path that no file system takes."""
    longest = max((len(os.fsencode(part)) for part in (path or "").split("/")), default=0)
    if longest > MAX_NAME_BYTES:
        raise ConfigError(
            f"'{key}' is '{named(path)}', which has a name of {longest:,} bytes; at most {MAX_NAME_BYTES} are possible"
        )
