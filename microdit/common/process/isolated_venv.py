"""Run tools with conflicting dependencies in a separate virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microdit.common.errors import DataError
from microdit.common.files.atomic import write_text

READY = ".ready"


@dataclass(frozen=True)
class Tool:
    """Describe a package, and the option that names a Python with that package."""

    package: str  # name on the package index
    module: str
    requirement: str
    option: str  # of the command line
    otherwise: str = ""  # what else can be done if it can't be installed


def find_python(tool: Tool, given: Path | None, cache: Path) -> tuple[Path, str]:
    """Find or install a Python that has a tool.

    Args:
        tool: the package.
        given: a Python that has it; None uses an environment in `cache`, made once.
        cache: contains the environment.

    Returns:
        The Python's path, and the tool's version.

    Raises:
        DataError: if the given Python lacks the tool, or the tool can't be installed.
    """
    if given is not None:
        # Not resolved: a virtual environment's python is a link, and finds its packages by the link's path.
        python = given.expanduser().absolute()
        found = _version(tool, python)
        if found is None:
            raise DataError(
                f"{tool.option} {given}: that Python can't import {tool.module}; install it there "
                f"('{given} -m pip install {tool.package}'), or omit the option to have an environment made"
            )
        return python, found
    home = cache.expanduser().absolute() / tool.package
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not ((home / READY).is_file() and _version(tool, python)):
        _install(tool, home, python)
    found = _version(tool, python)
    if found is None:
        raise DataError(f"{tool.package} was installed in {home} but can't be imported there; remove that folder")
    return python, found


def _install(tool: Tool, home: Path, python: Path) -> None:
    print(f"installing {tool.package} into a separate environment, once: {home}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    _must(tool, [sys.executable, "-m", "venv", str(home)], home)
    _must(tool, [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", tool.requirement], home)
    write_text(home / READY, tool.requirement + "\n")


def _must(tool: Tool, line: Sequence[str], home: Path) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().split("\n")[-1]
        raise DataError(
            f"{tool.package} can't be installed into {home}: {reason}. Give a Python that has it by {tool.option} PATH"
            f"{tool.otherwise}"
        )


def _version(tool: Tool, python: Path) -> str | None:
    # Not imported: that takes seconds if it imports torch, and the tool's own process reports errors.
    ask = (
        "import importlib.metadata, importlib.util, sys; "
        f"sys.exit(1) if importlib.util.find_spec('{tool.module}') is None else "
        f"print(importlib.metadata.version('{tool.package}'))"
    )
    try:
        done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip().split("\n")[-1] if done.returncode == 0 else None
