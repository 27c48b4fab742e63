"""Represent the caption tokens that condition the network.

B batch, S text tokens, Y token width. In a plain tensor (B, S, Y), as from CLIP, all tokens count. `MaskedTokens` also
marks padding. The null caption consists of zeros, all of which count. A network reads `CachedCaptions` many times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


@dataclass(frozen=True)
class MaskedTokens:
    """Hold tokens of captions of different lengths.

    Padding is neither attended to nor averaged.
    """

    tokens: Tensor  # (B, S, Y)
    mask: Tensor  # (B, S) bool, False for padding

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> MaskedTokens:
        """Return the captions with a function applied to tokens and mask.

        Args:
            function: of a tensor whose first dimension is B.
        """
        return MaskedTokens(function(self.tokens), function(self.mask))

    def __getitem__(self, rows: slice) -> MaskedTokens:
        """Return some captions of the batch."""
        return self.map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedTokens:
        """Return the captions on another device.

        Args:
            device: the target.
            non_blocking: copy asynchronously if the memory is pinned.
        """
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def repeat_interleave(self, count: int, dim: int = 0) -> MaskedTokens:
        """Repeat each caption `count` times in a row.

        Args:
            count: copies of each caption.
            dim: the batch dimension; only 0 is possible.

        Returns:
            (B * count, S, Y) tokens with their mask.
        """
        return self.map(lambda tensor: tensor.repeat_interleave(count, dim))


@dataclass(frozen=True, eq=False)
class CachedCaptions:
    """Keep what a network computes from captions alone, for evaluations at many noise levels.

    A sampler makes one object per batch and gives it to every evaluation. Each layer that reads captions stores its
    result at the first evaluation and reuses it at the others. The object belongs to one network, whose weights must
    not change meanwhile; it must not be used in training.
    """

    captions: Tensor | MaskedTokens  # (B, S, Y)
    alike: bool = False  # whether all tokens of a caption are equal, as those of the null caption are
    results: dict[nn.Module, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: slice) -> Tensor | MaskedTokens:
        """Return some captions of the batch, without results."""
        return self.captions[rows]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tensor | MaskedTokens:
        """Copy the captions to another device.

        Args:
            device: the target.
            non_blocking: copy asynchronously if the memory is pinned.

        Returns:
            The captions (B, S, Y) without cached results.
        """
        return self.captions.to(device, non_blocking=non_blocking)

    def repeat_interleave(self, count: int, dim: int = 0) -> Tensor | MaskedTokens:
        """Repeat each caption `count` times in a row, without results.

        Args:
            count: copies of each caption.
            dim: the batch dimension; only 0 is possible.

        Returns:
            (B * count, S, Y) tokens, with their mask if there is one.
        """
        return self.captions.repeat_interleave(count, dim)

    def once(self, layer: nn.Module, compute: Callable[[], Result]) -> Result:
        """Return a layer's result, computed at the first call.

        Args:
            layer: identifies the result; a layer has one.
            compute: computes it from the captions.
        """
        if layer not in self.results:
            self.results[layer] = compute()
        found: Result = self.results[layer]
        return found


Captions = Tensor | MaskedTokens | CachedCaptions


def with_mask(tokens: Tensor, mask: Tensor | None) -> Tensor | MaskedTokens:
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
    if isinstance(captions, CachedCaptions):
        captions = captions.captions
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
        function: maps (B, S, Y) to (B, S, any width), each token by itself.
        captions: (B, S, Y).

    Returns:
        (B, S, any width).
    """
    if isinstance(captions, CachedCaptions) and isinstance(function, nn.Module):
        return captions.once(function, lambda: _map_cached(function, captions))
    tokens, mask = unpack(captions)
    return with_mask(function(tokens), mask)


def _map_cached(function: Callable[[Tensor], Tensor], captions: CachedCaptions) -> CachedCaptions:
    tokens, mask = unpack(captions)
    if captions.alike:
        return CachedCaptions(function(tokens[:, :1]).expand(-1, tokens.shape[1], -1), alike=True)
    return CachedCaptions(with_mask(function(tokens), mask))


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


def null_captions(captions: CachedCaptions) -> CachedCaptions:
    """Return as many null captions as there are captions, without results.

    Returns:
        (B, S, Y).
    """
    tokens, _ = unpack(captions)
    return CachedCaptions(tokens.new_zeros(1, 1, 1).expand(tokens.shape), alike=True)
