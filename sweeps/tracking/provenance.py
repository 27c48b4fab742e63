"""Record which code ran: the commit, whether it was modified, and the uncommitted changes."""

from __future__ import annotations

import getpass
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from microdit.common.contract import SOURCE, MlflowTag, Tag

PACKAGES = ("torch", "diffusers", "open_clip_torch", "torch-fidelity", "mlflow", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Tags of a run, and the uncommitted difference ("" if there is none)."""

    tags: dict[str, str]
    diff: str


@cache
def provenance(command: str) -> Provenance:
    """Return what is known of the running code: git's state, or versions for a wheel.

    Args:
        command: the command that repeats the run.
    """
    commit = _git("rev-parse", "HEAD")
    diff = _git("diff", "HEAD") if commit else ""
    tags = {
        Tag.COMMAND: command,
        Tag.GIT_COMMIT: commit or "none",
        Tag.GIT_DIRTY: str(bool(commit and _git("status", "--porcelain", "--untracked-files=no"))).lower(),
        Tag.VERSION: version("microdit"),
        Tag.HOST: platform.node(),
        Tag.PACKAGES: ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }
    if commit:
        tags[MlflowTag.SOURCE_COMMIT] = commit  # what MLflow's own pages show
    return Provenance(tags, diff)


def source_tags() -> dict[str, str]:
    """Return MLflow's tags for the program and the user."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may have no user names
        user = "unknown"
    return {MlflowTag.SOURCE_NAME: SOURCE, MlflowTag.SOURCE_TYPE: "LOCAL", MlflowTag.USER: user}


def _git(*words: str) -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
