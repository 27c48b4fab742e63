"""Compute the cost of a network: FLOPs, parameters and memory.

The functions that build a network, and so load PyTorch, are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.model.cost.built import built_counts, built_seen_tokens

PUBLIC = {"built_counts": "built", "built_seen_tokens": "built"}

__all__ = ["built_counts", "built_seen_tokens"]

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
