"""Find published models: repositories of the model hub, and open_clip's by name.

Repositories are downloaded or found in the client's cache. This module also classifies loading errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microdit.common.errors import ConfigError, nearest


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
        except Exception as error:  # the client's own errors, the network's and the disk's
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


def is_name(path: str) -> bool:
    """Return whether `path` looks like open_clip's MODEL/TAG and isn't a folder."""
    foreign = ":" in path or path.startswith((".", "~"))
    parts = path.split("/")
    return not foreign and len(parts) == 2 and all(parts) and not Path(path).exists()


def known_name(path: str, key: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return open_clip's facts about MODEL/TAG.

    Args:
        path: the name.
        key: the setting that has it, for messages.

    Returns:
        The model's settings, and where its weights are published.

    Raises:
        ConfigError: if open_clip has no such model or weights; the message has the nearest name.
    """
    import open_clip

    model_name, _, tag = path.partition("/")
    where = f"'{key}' is '{path}'"
    settings = open_clip.get_model_config(model_name)
    if settings is None:
        raise ConfigError(f"{where}: no such folder, nor an open_clip model; {nearest(model_name, models())}")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise ConfigError(f"{where}: open_clip has no such weights of {model_name}; {nearest(tag, tags)}")
    pretrained = open_clip.get_pretrained_cfg(model_name, tag)
    if pretrained.get("quick_gelu", False) != settings.get("quick_gelu", False):
        twin = model_name.removesuffix("-quickgelu") if settings.get("quick_gelu", False) else f"{model_name}-quickgelu"
        raise ConfigError(f"{where}, but these weights were trained with another GELU; did you mean '{twin}/{tag}'?")
    return settings, pretrained


def models() -> list[str]:
    """Return the models whose weights open_clip can name."""
    import open_clip

    return sorted({model for model, _ in open_clip.list_pretrained()})
