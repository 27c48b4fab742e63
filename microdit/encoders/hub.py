"""Folders of a model hub, fetched (or found in its client's cache) only where a configuration names one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.encoders.loading import LOAD_ERRORS, short


def hub_folder(
    repository: str, needed: str, weights: Sequence[str], key: str, remedy: str, subfolder: str = ""
) -> Path:
    """The local copy of `repository`, or a folder in it: its small files, and the first of `weights` (patterns) it has.

    Raises ConfigError naming `key` and what to do instead (`remedy`) where it can't be had, or has no file `needed`.
    """
    from huggingface_hub import snapshot_download

    where = f"'{key}': hub repository '{repository}'"
    where += f", folder '{subfolder}'" if subfolder else ""
    small, inside = ["*.json", "*.txt", "*.txt.gz", "*.model"], f"{subfolder}/" if subfolder else ""
    for pattern in weights:
        try:
            patterns = [inside + name for name in (*small, pattern)]
            top = snapshot_download(repository, allow_patterns=patterns, ignore_patterns=None if inside else ["*/*"])
            folder = Path(top, subfolder)
        except LOAD_ERRORS as error:  # the client's own errors are OSErrors and ValueErrors
            raise ConfigError(f"{where} can't be reached or isn't there ({short(error, 160)}); {remedy}") from None
        if (folder / needed).is_file() and list(folder.glob(pattern)):
            return folder
    raise ConfigError(f"{where} has no {needed} beside {' or '.join(weights)}; {remedy}")


def cached_hub_file(repository: str, name: str) -> Path | None:
    """A file of `repository` that is on this machine already; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # not a repository's name
        return None
    return Path(found) if isinstance(found, str) else None
