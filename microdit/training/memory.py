"""Estimate the GPU memory of a training step from its settings, without a GPU.

A step runs on fake CUDA tensors, which have shapes and dtypes but no values, and the tensors that autograd keeps for
the backward pass are counted. B images of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.loss import build_alignment
from microdit.diffusion import build_objective
from microdit.diffusion.config import DiffusionConfig
from microdit.encoders.sizes import text_length
from microdit.model import DiT, DiTConfig
from microdit.model.cost.network import TEXT_TOKENS
from microdit.training.config import Recipe
from microdit.training.trainer import TrainingLoss

# fp32 weight, gradient, two moments and average; the optimizer of several parts keeps at most as many moments
STATE_BYTES_PER_PARAMETER = 20
# Context, kernels and libraries of a CUDA process, and what the allocator can't use.
CONTEXT_BYTES, FRAGMENTATION = 1.0e9, 1.05
PROBED = (2, 4)  # micro-batches of the two counts; activations are affine in B


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of GPU memory that a training process needs."""

    state: float  # weights, gradients, optimizer and average
    fixed: float  # kept for the backward pass whatever the batch: half-precision copies of weights
    per_image: float  # kept for the backward pass per image of a micro-batch

    def total(self, micro_batch: int) -> float:
        """Return the bytes of a step.

        Args:
            micro_batch: images of a micro-batch.
        """
        return CONTEXT_BYTES + FRAGMENTATION * (self.state + self.fixed + self.per_image * micro_batch)

    def largest_micro_batch(self, available: float, batch: int) -> int | None:
        """Return the largest micro-batch that fits.

        Args:
            available: bytes of GPU memory.
            batch: images of an optimizer step in this process, of which a micro-batch is a divisor.

        Returns:
            The images of a micro-batch; None if not even one image fits.
        """
        sizes = [size for size in range(1, batch + 1) if batch % size == 0 and self.total(size) <= available]
        return max(sizes, default=None)


def training_memory(config: Recipe) -> TrainingMemory:
    """Return the memory of one process that trains `config` on a GPU.

    Weights and optimizer are counted whole, also for sharded training.
    """
    tokens, half = text_length(config.text) or TEXT_TOKENS, config.training.precision == "bf16"
    parts = (config.model, config.alignment, config.diffusion, tokens, half)
    (small, parameters), (large, _) = (kept_for_backward(*parts, batch) for batch in PROBED)
    per_image = (large - small) / (PROBED[1] - PROBED[0])
    return TrainingMemory(STATE_BYTES_PER_PARAMETER * parameters, small - per_image * PROBED[0], per_image)


@lru_cache(maxsize=256)
def kept_for_backward(
    model: DiTConfig, alignment: AlignmentConfig, diffusion: DiffusionConfig, tokens: int, half: bool, batch: int
) -> tuple[int, int]:
    """Count what a forward pass keeps for the backward pass.

    Args:
        model: the network.
        alignment: its alignment term.
        diffusion: its objective.
        tokens: text tokens per caption.
        half: whether the pass runs under bf16 autocast.
        batch: B.

    Returns:
        The bytes kept, weights excluded, and the number of trained parameters.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        net = DiT(model, seed=None)
        objective = TrainingLoss(build_objective(diffusion, net, 1.0), build_alignment(alignment, model, seed=None))
        owned = {p.untyped_storage()._cdata for p in (*objective.parameters(), *objective.buffers())}
        image = (batch, model.in_channels, model.input_size, model.input_size)
        y = torch.empty(batch, tokens, model.caption_channels)
        target = torch.empty(batch, model.patches, objective.alignment.features)
        with torch.device("cpu"):
            plan = net.mask_plan(batch, torch.Generator())
        plan = None if plan is None else plan.to("cuda")
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, _autocast(half), _FusedAttention():
            objective(torch.empty(image), y, torch.ones(batch), torch.empty(image), target, plan)
        parameters = sum(parameter.numel() for parameter in objective.parameters())
        return sum(storage.nbytes() for place, storage in kept.items() if place not in owned), parameters


class _FusedAttention(TorchFunctionMode):
    """Use the attention kernels that a GPU uses; fake tensors would take the slow path, which keeps all weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else args[0].dtype
        q, k, v = (part.to(dtype) for part in args)
        mask = options.get("attn_mask")
        if mask is None and dtype != torch.float32:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        bias = None if mask is None else torch.zeros_like(mask, dtype=dtype).expand(*q.shape[:3], k.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """Turn on CUDA's autocast; `torch.autocast` turns itself off if there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
