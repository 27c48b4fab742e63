"""From YAML files and command-line overrides to a validated study.

The check of a search, and so Optuna, is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from sweeps.config.search_space import check_search as check_search

PUBLIC = {"check_search": "search_space"}

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
