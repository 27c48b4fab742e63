"""The import rule: the core knows no tracker and no sweep, the analysis knows neither of the other rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "microdit": {"hydra", "omegaconf", "optuna", "mlflow", "sweeps", "analysis"},
    "sweeps": {"analysis"},
    "analysis": {"microdit", "sweeps", "torch"},
}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = {str(f.relative_to(ROOT)): bad for f in files if (bad := imports_of(f) & FORBIDDEN[room])}
    assert not broken


def test_the_core_runs_without_hydra_optuna_and_mlflow():
    """Not by reading its source, but by taking those packages away."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'optuna', 'mlflow'): sys.modules[name] = None\n"
        "import microdit.pipeline.train_and_evaluate, microdit.pipeline.finetune, microdit.pipeline.pretrained, microdit.cli.main, tests.benchmarks.masking_speed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for room in FORBIDDEN
        for path in (ROOT / room).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 320
    }
    assert not long
