"""Docstring rules: Google-style sections for what a caller must know to use a public function.

A lone parameter of a plain type needs no Args section, and a first line that starts with "Return" needs no Returns
section unless the value has a shape, a unit or several parts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("microdit", "sweeps", "analysis")
MAX_FIRST_LINE = 80
# Types whose values need a shape, a unit or a list of parts.
STRUCTURED = re.compile(r"Tensor|ndarray|Array|\bint\b|\bfloat\b|Callable|[Dd]ict|Mapping|DataFrame|Series|[Tt]uple")
# Raised by a function without being part of what its callers handle.
UNDOCUMENTED_ERRORS = {"AssertionError", "NotImplementedError", "KeyboardInterrupt", "SystemExit", "StopIteration"}


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.ClassDef | None, ast.FunctionDef]]:
    """Yield public functions and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield None, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    yield node, member


def raised(function: ast.FunctionDef) -> set[str]:
    """Return the names of the errors that a function's own body raises."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            if name[:1].isupper():
                names.add(name)
    return names - UNDOCUMENTED_ERRORS


def faults(owner: ast.ClassDef | None, function: ast.FunctionDef) -> list[str]:
    """Return what a function's docstring lacks."""
    doc = ast.get_docstring(function)
    if doc is None:
        return [] if owner is not None and owner.bases else ["docstring"]  # an override inherits its docstring
    first = doc.splitlines()[0]
    arguments = function.args
    parameters = [
        a for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs if a.arg not in ("self", "cls")
    ]
    types = [ast.unparse(a.annotation) if a.annotation else "" for a in parameters]
    returned = ast.unparse(function.returns) if function.returns else "None"
    found = []
    if len(first) > MAX_FIRST_LINE:
        found.append(f"a first line of at most {MAX_FIRST_LINE} characters")
    if "Args:" in doc:
        section = doc.split("Args:")[1]
        found += [f"Args entry {a.arg}" for a in parameters if not re.search(rf"^\s*\*?\*?{a.arg}\b.*:", section, re.M)]
    elif len(parameters) > 1 or (parameters and STRUCTURED.search(types[0])):
        found.append("Args")
    described = "Returns:" in doc or "Yields:" in doc
    self_evident = re.match(r"(Return|Yield|Whether)", first) and not re.search(r"Tensor|ndarray|[Tt]uple", returned)
    if returned != "None" and not described and not self_evident:
        found.append("Returns")
    if raised(function) and "Raises:" not in doc:
        found.append("Raises")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_public_docstrings_describe_arguments_results_and_errors(package: str) -> None:
    broken = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for owner, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            if missing := faults(owner, function):
                name = f"{owner.name}.{function.name}" if owner else function.name
                broken.append(f"{path.relative_to(ROOT)}:{function.lineno} {name}: {', '.join(missing)}")
    assert not broken, "\n".join(broken)
