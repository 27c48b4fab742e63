"""Test that former locations resolve to present ones."""

from __future__ import annotations

import importlib

import pytest

from microdit.common.moved import MOVED_MODULES, MOVED_NAMES


@pytest.mark.parametrize("module", sorted(set(MOVED_MODULES.values())))
def test_a_present_module_exists(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("path", sorted(set(MOVED_NAMES.values())))
def test_a_present_name_exists(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
