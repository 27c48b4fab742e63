"""Count the FLOPs of linear layers.

A module with other matrix products counts them in its own `flops` method; see `microdit.model.cost.network` for the
rules.
"""

from __future__ import annotations

from torch import nn


def linear_flops(module: nn.Module, tokens: int) -> int:
    """Return the FLOPs of all linears in a module; a multiply-add counts as 2.

    Args:
        module: searched recursively.
        tokens: number of tokens that each linear processes.
    """
    return sum(2 * tokens * part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
