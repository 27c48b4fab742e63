"""Paths that stay valid in another working directory."""

from __future__ import annotations

from pathlib import Path

BUILTIN_NAMES = ("builtin", "pixels")  # values of `autoencoder.path` and `text.path` that are not paths


def absolute_if_folder(path: str) -> str:
    """Return the absolute path of an existing folder, and any other text unchanged."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() and path not in BUILTIN_NAMES else path
