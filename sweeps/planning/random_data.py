"""Provide random latents and captions with the interface of an encoded dataset.

N images, B batch, C h w latent shape, S text tokens, Y text width, T patches, E features to align with.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microdit.alignment.registry import feature_width
from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.pipeline.cost import text_tokens
from microdit.training.feed.batches import copy_to
from microdit.training.feed.device_rows import MAX_SHARE_OF_FREE_MEMORY

IMAGES = 256  # distinct ones


class RandomData:
    """Hold half-precision latents, captions and targets, on the GPU if the trial's own data would fit there.

    Args:
        config: gives the sizes.
        device: where training runs.
    """

    sigma_data = 0.5
    features = None  # those of an encoded dataset; training looks at their type to keep them on a GPU
    fingerprint = ""

    def __init__(self, config: Config, device: torch.device) -> None:
        model = config.model
        width = feature_width(config.alignment, model.side)
        self.shape = (IMAGES, model.in_channels, model.input_size, model.input_size)
        shapes = (
            self.shape[1:],
            (text_tokens(config), model.caption_channels),
            (model.patches if width else 0, width),
        )
        draw = generator(0, "measured data")
        rows = [torch.randn((IMAGES, *shape), generator=draw).half() for shape in shapes]
        needed = config.data.train_size / IMAGES * sum(tensor.nbytes for tensor in rows)
        fits = device.type == "cuda" and needed <= MAX_SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]
        self._rows = [tensor.to(device) for tensor in rows] if fits else rows

    def __len__(self) -> int:
        return IMAGES

    def stored(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return some rows in the precision in which an encoded dataset stores them.

        Args:
            rows: (B,) integers in [0, N).

        Returns:
            Latents (B, C, h, w), captions (B, S, Y) and targets (B, T, E).
        """
        chosen = copy_to(self._rows[0].device, torch.from_numpy(rows))
        x, y, target = (tensor[chosen] for tensor in self._rows)
        return x, y, target

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return some rows in float32 on the CPU.

        Args:
            rows: (B,) integers in [0, N).

        Returns:
            Latents (B, C, h, w) and captions (B, S, Y).
        """
        x, y, _ = self.stored(rows)
        return x.float().cpu(), y.float().cpu()
