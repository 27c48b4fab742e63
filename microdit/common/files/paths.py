"""Locate the bundled recipes, and keep paths valid in another working directory."""

from __future__ import annotations

from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"  # the recipes: one folder per group of YAML files
BUILTIN_NAMES = ("builtin", "pixels")  # values of `autoencoder.path` and `text.path` that are not paths


def group_options(group: str) -> list[str]:
    """Return the names of the files in a group of recipes, such as "study" or "scale"."""
    return sorted(path.stem for path in (EXPERIMENTS / group).glob("*.yaml"))


def absolute_if_folder(path: str) -> str:
    """Return the absolute path of an existing folder, and any other text unchanged."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() and path not in BUILTIN_NAMES else path
