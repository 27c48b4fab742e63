"""Frozen networks that hidden tokens are aligned with: a feature vector for each patch of a clean image.

B batch, H W image height and width, G patches a side, T patches (T = G * G), E features of a patch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.evaluation.lite0 import CPU_CHUNK, LITE0_SIDE, build_lite0, fold_batch_norm, lite0_digest, lite0_pixels
from microdit.roles import resolve

if TYPE_CHECKING:
    from microdit.alignment.config import AlignmentConfig

LITE0 = "efficientnet-lite0"
LITE0_MAPS = ((2, 16), (4, 24), (8, 40), (16, 112), (32, 320))  # stride and channels of its feature maps


class PatchEncoder:
    """The role, made as `PatchEncoder(side, device)` for a grid of `side` x `side` patches.

    One is made wherever costs are counted, so weights are better loaded at the first `encode`.
    """

    width: int  # E; 0: nothing to align with

    def __init__(self, side: int, device: torch.device | str) -> None:
        self.side = side
        self.device = torch.device(device)

    @property
    def fingerprint(self) -> str:
        """Names all that determines the features of an image, the grid aside; cached features are keyed by it."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, T, E), row by row; only directions matter, not lengths."""
        raise NotImplementedError


class NoEncoder(PatchEncoder):
    """Nothing is aligned."""

    width = 0


class Lite0Patches(PatchEncoder):
    """ImageNet EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946), the network whose pooled features `fd` compares.

    Images are scaled to 224 x 224, as it was trained. Of its feature maps (112, 56, 28, 14, 7 a side) the one nearest
    to G in ratio is taken, and resized to G x G bilinearly, with antialiasing where it shrinks. On one CPU thread about
    40 images/s.
    """

    def __init__(self, side: int, device: torch.device | str) -> None:
        super().__init__(side, device)
        distances = [abs(math.log(LITE0_SIDE / stride / side)) for stride, _ in LITE0_MAPS]
        self.map = distances.index(min(distances))
        self.width = LITE0_MAPS[self.map][1]
        self._network: nn.Module | None = None

    @property
    def fingerprint(self) -> str:
        return f"{LITE0}-map{self.map}-{lite0_digest()}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if self._network is None:
            self._network = fold_batch_norm(build_lite0()).to(self.device).to(memory_format=torch.channels_last)
        chunk = CPU_CHUNK if self.device.type == "cpu" else len(images)
        return torch.cat([self._features(part.to(self.device)) for part in images.split(chunk)])

    def _features(self, images: Tensor) -> Tensor:  # (B, H, W, 3) uint8 -> (B, T, E)
        pixels = lite0_pixels(images.permute(0, 3, 1, 2))
        (found,) = self._network.forward_intermediates(  # type: ignore[union-attr, operator]
            pixels, indices=[self.map], stop_early=True, intermediates_only=True
        )
        grid = F.interpolate(found, size=(self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        return grid.flatten(2).transpose(1, 2)


ENCODERS: dict[str, type[PatchEncoder]] = {"none": NoEncoder, LITE0: Lite0Patches}


def build_encoder(config: AlignmentConfig, side: int, device: torch.device | str = "cpu") -> PatchEncoder:
    """The encoder that `config` names for a grid of `side` x `side` patches; none where it counts for nothing."""
    name = config.encoder if config.weight else "none"
    return resolve(name, ENCODERS, "alignment.encoder")(side, device)
