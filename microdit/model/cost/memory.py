"""Estimate the least memory that a run needs.

This is arithmetic on settings, so that impossible runs are rejected before anything is built. The parameter count is
rough: the blocks' matrices only. `microdit.model.cost.network` counts exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from microdit.common.errors import ConfigError
from microdit.model.config import DiTConfig

if TYPE_CHECKING:
    import torch

MAX_PARAMETERS = 10**13  # 200 TB of weights, gradients, moments and average
MAX_BATCH_BYTES = 10**14
MAX_PATCHES = 1 << 22
BYTES_PER_PARAMETER = 16  # fp32 weights, gradients, and the least that optimizer and average add
GIB = 1 << 30


def approximate_parameters(model: DiTConfig) -> float:
    """Return a rough count of the blocks' parameters, to within a small factor."""
    attention, hidden = ((width.start + width.end) / 2 for width in (model.attn_width, model.ffn_width))
    every = model.experts.every_n
    expert_blocks = model.depth // every if every else 0
    expert_ffn = 2 * model.experts.num * model.experts.ffn_scale * hidden
    square = float(model.width) ** 2
    backbone = (model.depth * (8 * attention + 6) + (model.depth - expert_blocks) * 3 * hidden) * square
    mixer = model.mixer.depth * (14 + 3 * model.mixer.ffn_ratio) * float(model.mixer_width) ** 2
    return backbone + expert_blocks * expert_ffn * square + mixer


def batch_bytes(model: DiTConfig, resolution: int, batch_size: int) -> float:
    """Return the bytes of one global batch's latents, noise and images.

    Activations are not included.

    Args:
        model: the architecture.
        resolution: side of the images in pixels.
        batch_size: images of all processes together.
    """
    return batch_size * (8.0 * model.in_channels * model.input_size**2 + 3.0 * resolution**2)


def check_footprint(model: DiTConfig, resolution: int, batch_size: int) -> None:
    """Reject a network or batch that no machine could hold.

    Args:
        model: the architecture.
        resolution: side of the images in pixels.
        batch_size: images of all processes together.

    Raises:
        ConfigError: if parameters, patches per image or bytes per batch exceed a limit of this module.
    """
    parameters = approximate_parameters(model)
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"'model.depth' {model.depth:,} and 'model.width' {model.width:,} make a network of about {parameters:.1e} "
            f"parameters, {parameters * BYTES_PER_PARAMETER / 1e12:,.0f} TB to train; at most {MAX_PARAMETERS:.0e} "
            "are possible"
        )
    if model.patches > MAX_PATCHES:
        raise ConfigError(
            f"'model.input_size' {model.input_size:,} and 'model.patch_size' {model.patch_size} make {model.patches:,} "
            f"patches per image; at most {MAX_PATCHES:,} are possible"
        )
    size = batch_bytes(model, resolution, batch_size)
    if size > MAX_BATCH_BYTES:
        raise ConfigError(
            f"'training.batch_size' {batch_size:,} at 'data.resolution' {resolution:,} and 'model.input_size' "
            f"{model.input_size:,} takes {size / 1e12:,.0f} TB per batch; no machine holds that"
        )


def check_memory(parameters: int, batch: float, images: float, device: torch.device, processes: int) -> None:
    """Reject a run that does not fit into this machine's memory.

    Args:
        parameters: exact count of the network.
        batch: bytes of a global batch.
        images: bytes of the scored images.
        device: holds the weights.
        processes: number of devices that the weights are sharded over.

    Raises:
        ConfigError: if weights, batch or images need more memory than there is.
    """
    ram = psutil.virtual_memory().total + psutil.swap_memory().total
    weights = float(parameters * BYTES_PER_PARAMETER)
    room = float(ram)
    if device.type == "cuda":
        import torch

        room = float(torch.cuda.mem_get_info(device)[1] * processes)
    needs = {
        f"training {parameters:,} parameters": (weights, room),
        "one batch ('training.batch_size')": (batch, float(ram)),
        "the scored images ('evaluation.samples')": (images, float(ram)),
    }
    for what, (needed, available) in needs.items():
        if needed > available:
            raise ConfigError(
                f"{what} needs at least {needed / GIB:,.0f} GiB of memory; this machine has {available / GIB:,.0f} GiB"
            )
