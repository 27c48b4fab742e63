"""Estimate the GPU memory of a training step from its settings, without a GPU.

A step runs on fake CUDA tensors, which have shapes and dtypes but no values, and the tensors that autograd keeps for
the backward pass are counted. B images of a micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.loss import build_alignment
from microdit.common.errors import ConfigError
from microdit.diffusion import build_objective
from microdit.diffusion.config import DiffusionConfig
from microdit.encoders.sizes import text_length
from microdit.model import DiT, DiTConfig
from microdit.model.cost.network import TEXT_TOKENS
from microdit.model.layers.blocks import DiTBlock
from microdit.training.config import Recipe, TrainingConfig
from microdit.training.trainer import TrainingLoss

# fp32 weight, gradient, two moments and average; the optimizer of several parts keeps at most as many moments
STATE_BYTES_PER_PARAMETER = 20
# Context, kernels and libraries of a CUDA process, and what the allocator can't use.
CONTEXT_BYTES, FRAGMENTATION = 1.0e9, 1.05
PROBED = (2, 4)  # micro-batches of the two counts; activations are affine in B
GB = 1e9


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


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass, weights excluded, and the trained parameters."""

    plain: int
    checkpointed: int  # with activation checkpointing: between blocks, plus the block that keeps most
    parameters: int


def training_memory(config: Recipe, processes: int = 1) -> TrainingMemory:
    """Return the memory of one process that trains `config` on a GPU.

    Args:
        config: settings of the run. Compiled steps need less than this estimate.
        processes: number of processes, over which FSDP shards weights and optimizer state.
    """
    settings, tokens = config.training, text_length(config.text) or TEXT_TOKENS
    half = settings.precision == "bf16"
    parts = (config.model, config.alignment, config.diffusion, tokens, half, half and settings.residual == "bf16")
    small, large = (kept_for_backward(*parts, batch) for batch in PROBED)
    fixed = small.plain - (large.plain - small.plain) / (PROBED[1] - PROBED[0]) * PROBED[0]
    kept = [each.checkpointed if settings.activation_checkpointing else each.plain for each in (small, large)]
    shards = processes if settings.parallel == "fsdp" else 1
    state = STATE_BYTES_PER_PARAMETER * small.parameters / shards
    return TrainingMemory(state, fixed, (kept[1] - kept[0]) / (PROBED[1] - PROBED[0]))


def fewest_micro_batches(config: Recipe, available: float, processes: int = 1) -> int:
    """Return the value of `training.accumulation` at which a step fits.

    Args:
        config: settings of the run; its accumulation is not read.
        available: bytes of GPU memory of each process.
        processes: number of processes that share the batch.

    Raises:
        ConfigError: if not even one image fits.
    """
    own = max(config.training.batch_size // processes, 1)
    memory = training_memory(config, processes)
    largest = memory.largest_micro_batch(available, own)
    if largest is None:
        raise ConfigError(
            f"'training.accumulation' is auto, but one image needs {memory.total(1) / GB:,.1f} GB of GPU memory, and "
            f"the GPU has {available / GB:,.1f} GB; {_without_one_image(config.training)}"
        )
    return own // largest


def check_fits(config: Recipe, available: float, device: str, processes: int = 1, what: str = "training") -> None:
    """Reject a training whose steps need more memory than a GPU has.

    Compiled steps are not checked, because the estimate doesn't hold for them.

    Args:
        config: settings of the run.
        available: bytes of GPU memory of each process.
        device: the GPU, for the message.
        processes: number of processes that share the batch.
        what: the run, for the message.

    Raises:
        ConfigError: if a micro-batch doesn't fit; names need, capacity and remedies.
    """
    settings = config.training
    own = max(settings.batch_size // processes, 1)
    memory, micro = training_memory(config, processes), max(own // settings.micro_batches, 1)
    need = memory.total(micro)
    if need <= available or settings.compile is True:
        return
    largest = memory.largest_micro_batch(available, own)
    remedy = f"set training.accumulation={own // largest}" if largest else _without_one_image(settings)
    if largest and not settings.activation_checkpointing:
        remedy += ", or training.activation_checkpointing=true, which needs fewer micro-batches"
    raise ConfigError(
        f"{what} needs about {need / GB:,.1f} GB of GPU memory for {micro} images at a time, but {device} has "
        f"{available / GB:,.1f} GB; {remedy}"
    )


def _without_one_image(settings: TrainingConfig) -> str:
    """Return the remedies if not even one image fits."""
    if settings.activation_checkpointing:
        return "not even one image fits, so accumulation does not help: use a larger GPU, or training.parallel=fsdp"
    return "not even one image fits, so accumulation does not help: set training.activation_checkpointing=true"


@lru_cache(maxsize=256)
def kept_for_backward(
    model: DiTConfig,
    alignment: AlignmentConfig,
    diffusion: DiffusionConfig,
    tokens: int,
    half: bool,
    half_residual: bool,
    batch: int,
) -> Kept:
    """Count what a forward pass keeps for the backward pass.

    Args:
        model: the network.
        alignment: its alignment term.
        diffusion: its objective.
        tokens: text tokens per caption.
        half: whether the pass runs under bf16 autocast.
        half_residual: whether tokens and norms are then bf16.
        batch: B.

    Returns:
        The bytes kept, with and without checkpointing, and the parameters.
    """
    settings = TrainingConfig(precision="bf16", residual="bf16" if half_residual else "fp32")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        net = DiT(model, seed=None)
        denoiser = build_objective(diffusion, net, 1.0)
        objective = TrainingLoss(denoiser, build_alignment(alignment, model, seed=None), settings)
        image = (batch, model.in_channels, model.input_size, model.input_size)
        y = torch.empty(batch, tokens, model.caption_channels)
        target = torch.empty(batch, model.patches, objective.alignment.features)
        with torch.device("cpu"):
            plan = net.mask_plan(batch, torch.Generator())
        plan = None if plan is None else plan.to("cuda")
        counter = _Counter(objective)
        with counter, _autocast(half), _FusedAttention():
            objective(torch.empty(image), y, torch.ones(batch), torch.empty(image), target, plan)
        parameters = sum(parameter.numel() for parameter in objective.parameters())
        return Kept(counter.plain(), counter.checkpointed(), parameters)


class _Counter(torch.autograd.graph.saved_tensors_hooks):
    """Count the storages that autograd keeps, by the block that keeps them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self._owned = {p.untyped_storage()._cdata for p in (*module.parameters(), *module.buffers())}
        # None: outside of blocks. Storages are held, so that no other one takes their address.
        self._kept: dict[nn.Module | None, dict[int, torch.UntypedStorage]] = defaultdict(dict)
        self._inputs: dict[int, torch.UntypedStorage] = {}
        self._block: nn.Module | None = None
        for part in module.modules():
            if isinstance(part, DiTBlock):
                part.register_forward_pre_hook(self._enter)
                part.register_forward_hook(self._leave)

    def plain(self) -> int:
        """Return the bytes kept by all."""
        return self._bytes(*self._kept.values())

    def checkpointed(self) -> int:
        """Return the bytes kept outside of blocks, their inputs, and the most that one block adds to these."""
        outside = {**self._kept[None], **self._inputs}
        blocks = [kept for block, kept in self._kept.items() if block is not None]
        return max((self._bytes(outside, block) for block in blocks), default=self._bytes(outside))

    def _bytes(self, *groups: Mapping[int, torch.UntypedStorage]) -> int:
        distinct = {place: storage for group in groups for place, storage in group.items()}
        return sum(storage.nbytes() for place, storage in distinct.items() if place not in self._owned)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[self._block][storage._cdata] = storage
        return tensor

    def _enter(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._block = block
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self._inputs[tensor.untyped_storage()._cdata] = tensor.untyped_storage()

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._block = None


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
