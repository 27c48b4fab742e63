"""Represent the caption tokens that the network is conditioned on.

B batch, S text tokens, Y token width. A plain tensor (B, S, Y) counts every token, as CLIP's 77 are used;
`MaskedTokens` also marks the padding. The null caption is all zeros, and all of its tokens count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedTokens:
    """Tokens of captions of different lengths; padding is neither attended to nor averaged."""

    tokens: Tensor  # (B, S, Y)
    mask: Tensor  # (B, S) bool, False for padding

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> MaskedTokens:
        """Return some captions of the batch."""
        return MaskedTokens(self.tokens[rows], self.mask[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedTokens:
        """Return the captions on another device."""
        return MaskedTokens(
            self.tokens.to(device, non_blocking=non_blocking), self.mask.to(device, non_blocking=non_blocking)
        )

    def repeat_interleave(self, count: int, dim: int = 0) -> MaskedTokens:
        """Repeat each caption `count` times in a row."""
        return MaskedTokens(self.tokens.repeat_interleave(count, dim), self.mask.repeat_interleave(count, dim))


Captions = Tensor | MaskedTokens


def with_mask(tokens: Tensor, mask: Tensor | None) -> Captions:
    """Combine tokens (B, S, Y) with a mask of those that count (B, S).

    None means that all count.
    """
    return tokens if mask is None else MaskedTokens(tokens, mask)


def unpack(captions: Captions) -> tuple[Tensor, Tensor | None]:
    """Return tokens (B, S, Y), and which count, (B, S); None: all."""
    return (captions.tokens, captions.mask) if isinstance(captions, MaskedTokens) else (captions, None)


def replace_empty_captions(captions: Captions) -> tuple[Tensor, Tensor | None]:
    """Replace fully padded captions with the null caption.

    Attention over no tokens would give NaN. Returns tokens and mask.
    """
    tokens, mask = unpack(captions)
    if mask is None:
        return tokens, None
    empty = ~mask.any(1, keepdim=True)  # (B, 1)
    return tokens.masked_fill(empty.unsqueeze(-1), 0), mask | empty


def map_tokens(function: Callable[[Tensor], Tensor], captions: Captions) -> Captions:
    """Apply `function` to each token and keep the mask."""
    tokens, mask = unpack(captions)
    return with_mask(function(tokens), mask)


def map_tensors(function: Callable[[Tensor], Tensor], captions: Captions) -> Captions:
    """Apply `function` to the tokens and to the mask."""
    tokens, mask = unpack(captions)
    return with_mask(function(tokens), None if mask is None else function(mask))


def mean_token(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over tokens that count: (B, S, Y) -> (B, Y)."""
    if mask is None:
        return tokens.mean(1)
    kept = mask.unsqueeze(-1)
    return tokens.masked_fill(~kept, 0).sum(1) / kept.sum(1)


def round_to_half(captions: Captions) -> Captions:
    """Round tokens to half precision on the CPU.

    Stored features have half precision, so training and scores are the same in both cases.
    """
    tokens, mask = unpack(captions)
    return with_mask(tokens.half().float().cpu(), None if mask is None else mask.cpu())


def drop_captions(captions: Captions, rows: Tensor) -> Captions:
    """Replace the captions in `rows` (B,) bool with the null caption."""
    tokens, mask = unpack(captions)
    return with_mask(tokens.masked_fill(rows.view(-1, 1, 1), 0), None if mask is None else mask | rows.view(-1, 1))


def append_null_captions(captions: Captions) -> Captions:
    """Append as many null captions as there are captions: 2B in all."""
    tokens, mask = unpack(captions)
    return with_mask(
        torch.cat([tokens, torch.zeros_like(tokens)]),
        None if mask is None else torch.cat([mask, torch.ones_like(mask)]),
    )
