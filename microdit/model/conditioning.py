"""Represent the caption tokens that condition the network.

B batch, S text tokens, Y token width. In a plain tensor (B, S, Y), as from CLIP, all tokens count. `MaskedTokens` also
marks padding. The null caption consists of zeros, all of which count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedTokens:
    """Hold tokens of captions of different lengths.

    Padding is neither attended to nor averaged.
    """

    tokens: Tensor  # (B, S, Y)
    mask: Tensor  # (B, S) bool, False for padding

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> MaskedTokens:
        """Return some captions of the batch."""
        return MaskedTokens(self.tokens[rows], self.mask[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedTokens:
        """Return the captions on another device.

        Args:
            device: the target.
            non_blocking: copy asynchronously if the memory is pinned.
        """
        return MaskedTokens(
            self.tokens.to(device, non_blocking=non_blocking), self.mask.to(device, non_blocking=non_blocking)
        )

    def repeat_interleave(self, count: int, dim: int = 0) -> MaskedTokens:
        """Repeat each caption `count` times in a row.

        Args:
            count: copies of each caption.
            dim: the batch dimension; only 0 is possible.

        Returns:
            (B * count, S, Y) tokens with their mask.
        """
        return MaskedTokens(self.tokens.repeat_interleave(count, dim), self.mask.repeat_interleave(count, dim))


Captions = Tensor | MaskedTokens


def with_mask(tokens: Tensor, mask: Tensor | None) -> Captions:
    """Combine tokens with their mask.

    Args:
        tokens: (B, S, Y).
        mask: (B, S) bool, False for padding; None: all tokens count.

    Returns:
        `tokens` themselves if there is no mask.
    """
    return tokens if mask is None else MaskedTokens(tokens, mask)


def unpack(captions: Captions) -> tuple[Tensor, Tensor | None]:
    """Return tokens and mask separately; the inverse of `with_mask`.

    Returns:
        Tokens (B, S, Y), and their mask (B, S) or None.
    """
    return (captions.tokens, captions.mask) if isinstance(captions, MaskedTokens) else (captions, None)


def replace_empty_captions(captions: Captions) -> tuple[Tensor, Tensor | None]:
    """Replace fully padded captions with the null caption.

    Attention over no tokens would give NaN.

    Returns:
        Tokens (B, S, Y), and their mask (B, S) or None; no caption is fully masked.
    """
    tokens, mask = unpack(captions)
    if mask is None:
        return tokens, None
    empty = ~mask.any(1, keepdim=True)  # (B, 1)
    return tokens.masked_fill(empty.unsqueeze(-1), 0), mask | empty


def map_tokens(function: Callable[[Tensor], Tensor], captions: Captions) -> Captions:
    """Apply a function to all tokens and keep the mask.

    Args:
        function: maps (B, S, Y) to (B, S, any width).
        captions: (B, S, Y).

    Returns:
        (B, S, any width).
    """
    tokens, mask = unpack(captions)
    return with_mask(function(tokens), mask)


def map_tensors(function: Callable[[Tensor], Tensor], captions: Captions) -> Captions:
    """Apply a function to the tokens and to the mask.

    Args:
        function: such as an index of the batch, or a copy to a device; called with (B, S, Y) and (B, S).
        captions: (B, S, Y).

    Returns:
        Captions of the function's results.
    """
    tokens, mask = unpack(captions)
    return with_mask(function(tokens), None if mask is None else function(mask))


def mean_token(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the tokens that count.

    Args:
        tokens: (B, S, Y).
        mask: (B, S) bool, at least one True per caption; None: all count.

    Returns:
        (B, Y).
    """
    if mask is None:
        return tokens.mean(1)
    kept = mask.unsqueeze(-1)
    return tokens.masked_fill(~kept, 0).sum(1) / kept.sum(1)


def round_to_half(captions: Captions) -> Captions:
    """Round tokens to half precision, as stored features are.

    Training and scores are thus the same with and without stored features.

    Returns:
        Captions on the CPU, as float32.
    """
    tokens, mask = unpack(captions)
    return with_mask(tokens.half().float().cpu(), None if mask is None else mask.cpu())


def drop_captions(captions: Captions, rows: Tensor) -> Captions:
    """Replace some captions of a batch with the null caption.

    Args:
        captions: (B, S, Y).
        rows: (B,) bool, True for captions to replace.

    Returns:
        (B, S, Y).
    """
    tokens, mask = unpack(captions)
    return with_mask(tokens.masked_fill(rows.view(-1, 1, 1), 0), None if mask is None else mask | rows.view(-1, 1))


def append_null_captions(captions: Captions) -> Captions:
    """Append as many null captions as there are captions.

    Returns:
        (2 B, S, Y).
    """
    tokens, mask = unpack(captions)
    return with_mask(
        torch.cat([tokens, torch.zeros_like(tokens)]),
        None if mask is None else torch.cat([mask, torch.ones_like(mask)]),
    )
