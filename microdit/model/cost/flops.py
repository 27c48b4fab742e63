"""Count the FLOPs of linears.

A part that computes more counts it in its `flops` method; see `cost` for the rules.
"""

from __future__ import annotations

from torch import nn


def linear_flops(module: nn.Module, tokens: int) -> int:
    """Return the FLOPs of all linears in `module`, each applied to `tokens` tokens.

    A multiply-add counts as 2.
    """
    return sum(2 * tokens * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
