"""Average the weights of a network exponentially."""

from __future__ import annotations

import copy

import torch

from microdit.model import DiT


class AveragedWeights:
    """Keep an exponential moving average of a network's weights.

    The number of updates is a Python integer, so an update of weights on a GPU doesn't wait for it. torch's
    `AveragedModel`, which computes the same numbers, has its counter in a tensor and copies it at every update.

    Args:
        net: the network; the average starts as a copy of it.
        decay: weight of the former average in an update.

    Attributes:
        module: the network with averaged weights.
        updates: number of updates so far.
    """

    def __init__(self, net: DiT, decay: float) -> None:
        self.module = copy.deepcopy(net)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, net: DiT) -> None:
        """Include the weights of `net` in the average.

        The first update copies them. Buffers are copied at every update.

        Args:
            net: the network in training, on the same device.
        """
        copied = [(self.module.buffers(), net.buffers())]
        if self.updates:
            torch._foreach_lerp_([*self.module.parameters()], [*net.parameters()], 1 - self._decay)
        else:
            copied.append((self.module.parameters(), net.parameters()))
        for averages, latest in copied:
            for average, tensor in zip(averages, latest, strict=True):
                average.copy_(tensor)
        self.updates += 1
