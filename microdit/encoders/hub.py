"""Find local copies of model-hub repositories, and classify loading errors.

Repositories are downloaded or found in the client's cache.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from microdit.common.errors import ConfigError

# Everything that loaders raise for a damaged, third-party or unreachable file. A RecursionError is a RuntimeError.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    ArithmeticError,
    AssertionError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
)


def short(error: Exception, limit: int = 300) -> str:
    """Return an error's text on one line, with its type if the text is short.

    Args:
        error: what a loader raised.
        limit: characters to keep.
    """
    words = " ".join(str(error).split())
    return (words if len(words) > 20 else f"{type(error).__name__}: {words}")[:limit]


def hub_folder(
    repository: str, needed: str, weights: Sequence[str], key: str, remedy: str, subfolder: str = ""
) -> Path:
    """Return the local copy of a repository, or of a folder in it.

    It has the weights and all small files, such as the configuration and the tokenizer's files.

    Args:
        repository: OWNER/NAME.
        needed: a file that must exist.
        weights: file patterns of weights; the first that matches is downloaded.
        key: the setting that names the repository, for messages.
        remedy: what to do instead, for messages.
        subfolder: a folder in the repository.

    Raises:
        ConfigError: if the repository can't be reached or lacks `needed`.
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
        except LOAD_ERRORS as error:  # includes the client's own errors, which are OSErrors and ValueErrors
            raise ConfigError(f"{where} can't be reached or doesn't exist ({short(error, 160)}); {remedy}") from None
        if (folder / needed).is_file() and list(folder.glob(pattern)):
            return folder
    raise ConfigError(f"{where} has no {needed} beside {' or '.join(weights)}; {remedy}")


def cached_hub_file(repository: str, name: str) -> Path | None:
    """Return the cached file of a repository, None if there is none; uses no network.

    Args:
        repository: OWNER/NAME.
        name: the file's path in the repository.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name)
    except ValueError:  # not a repository name
        return None
    return Path(found) if isinstance(found, str) else None
