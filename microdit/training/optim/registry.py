"""Optimizers by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from typing import Any

from microdit.common.registry import Registry

# `optimizers` exports it with its type.
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer.type",
    {"adamw": "microdit.training.optim.optimizers.adamw", "muon": "microdit.training.optim.optimizers.muon"},
)
