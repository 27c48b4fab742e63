"""Train: the loop, its optimizers and checkpoints, and the memory it needs.

The functions that count memory load PyTorch, so they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.training.memory import check_fits as check_fits
    from microdit.training.memory import fewest_micro_batches as fewest_micro_batches
    from microdit.training.memory import training_memory as training_memory

PUBLIC = dict.fromkeys(("check_fits", "fewest_micro_batches", "training_memory"), "memory")

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
