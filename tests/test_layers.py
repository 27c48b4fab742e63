"""Test the import rules: layers of `microdit`, no cycles, and allowed packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Packages of `microdit`, lowest first. A package imports from lower layers only; packages of one layer don't import
# each other.
LAYERS = (
    ("common",),
    ("model",),
    ("diffusion", "encoders"),
    ("data",),
    ("alignment", "assets"),
    ("evaluation",),
    ("training",),
    ("config",),
    ("pipeline",),
    ("cli",),
)
FORBIDDEN = {
    "microdit": ("hydra", "omegaconf", "optuna", "mlflow", "sweeps", "analysis"),
    "sweeps": ("analysis",),
    "analysis": ("microdit", "sweeps", "torch"),
}
ALLOWED = {"analysis": ("microdit.common",)}
MAX_LINES, MAX_MODULES = 400, 12  # of a file, of a package


@cache
def sources(package: str) -> dict[str, tuple[Path, ast.Module]]:
    """Return the modules of a top-level package by dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imported(tree: ast.Module, modules: object) -> set[tuple[str, bool]]:
    """Return all imports of a file: dotted name, and whether it is in a function."""
    found: set[tuple[str, bool]] = set()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        local = id(node) in inside
        if isinstance(node, ast.Import):
            found |= {(alias.name, local) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add((full if full in modules else node.module, local))  # type: ignore[operator]
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    broken = {}
    for name, (_, tree) in sources(package).items():
        for target, _ in imported(tree, sources("microdit")):
            inside = any(target == allowed or target.startswith(f"{allowed}.") for allowed in ALLOWED.get(package, ()))
            if target.split(".")[0] in FORBIDDEN[package] and not inside:
                broken[name] = target
    assert not broken


def test_packages_import_lower_layers_only() -> None:
    rank = {package: level for level, packages in enumerate(LAYERS) for package in packages}
    modules = sources("microdit")
    assert {name.split(".")[1] for name in modules if "." in name} - {"__main__"} == set(rank)
    broken = []
    for name, (_, tree) in modules.items():
        for target, _ in imported(tree, modules):
            own, other = ([*path.split("."), ""][1] for path in (name, target))
            if target in modules and own in rank and own != other and rank.get(other, len(LAYERS)) >= rank[own]:
                broken.append(f"{name} imports {target}")
    assert not broken


@pytest.mark.parametrize("package", FORBIDDEN)
def test_there_are_no_import_cycles(package: str) -> None:
    modules = sources(package)
    edges = {
        name: {target for target, _ in imported(tree, modules) if target in modules} - {name}
        for name, (_, tree) in modules.items()
    }
    removed = True
    while removed:  # a module that imports none of the remaining ones is in no cycle
        removed = {name for name, targets in edges.items() if not targets}
        edges = {name: targets - removed for name, targets in edges.items() if name not in removed}
    assert not edges


@pytest.mark.parametrize("package", FORBIDDEN)
def test_local_imports_of_our_own_modules_are_in_command_line_modules_only(package: str) -> None:
    modules = {name: source for own in FORBIDDEN for name, source in sources(own).items()}
    broken = [
        f"{name} imports {target} in a function"
        for name, (_, tree) in sources(package).items()
        for target, local in imported(tree, modules)
        if local and target in modules and not f"{name}.".startswith(f"{package}.cli.")
    ]
    assert not broken


def test_the_core_runs_without_hydra_optuna_and_mlflow() -> None:
    """The packages are removed instead of reading the source."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'optuna', 'mlflow'): sys.modules[name] = None\n"
        "import microdit.pipeline.train_and_evaluate, microdit.pipeline.finetune, microdit.pipeline.pretrained\n"
        "import microdit.cli.main\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_and_packages_stay_small() -> None:
    for package in FORBIDDEN:
        paths = [path for path, _ in sources(package).values()]
        long = {path: count for path in paths if (count := len(path.read_text("utf-8").splitlines())) > MAX_LINES}
        assert not long
        folders = {path.parent for path in paths}
        big = {folder: count for folder in folders if (count := len([*folder.glob("[!_]*.py")])) > MAX_MODULES}
        assert not big
