"""Test that commands which train nothing load no heavy library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "accelerate", "mlflow", "pandas", "scipy", "matplotlib")
CODE = """
import sys
from {module} import main
code = main(sys.argv[1:])
print("loaded", *sorted(set({names!r}) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("module", "words", "code", "unused"),
    [
        ("microdit.cli.main", "--help", 0, ("numpy", "sqlalchemy")),
        ("sweeps.cli", "--help", 0, ("numpy", "sqlalchemy", "optuna", "hydra")),
        ("analysis.cli", "--help", 0, ("numpy", "sqlalchemy", "optuna")),
        ("sweeps.cli", "config scale=smoke", 0, ("sqlalchemy", "optuna")),
        ("sweeps.cli", "study=masking_ration scale=smoke", 2, ("sqlalchemy", "optuna")),
        ("sweeps.cli", "plan study=masking_ratio scale=smoke measure=false", 0, ()),
        ("sweeps.cli", "status study=masking_ratio scale=smoke", 2, ()),
    ],
)
def test_a_command_that_trains_nothing_loads_no_heavy_library(
    module: str, words: str, code: int, unused: tuple[str, ...], tmp_path: Path
) -> None:
    """The folder is empty, so no store is opened."""
    program = CODE.format(module=module, names=(*HEAVY, *unused))
    command = [sys.executable, "-c", program, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, "loaded"), done.stderr
