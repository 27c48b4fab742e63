"""Apply classifier-free guidance, by captions or by path-drop.

It can be limited to an interval of noise levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microdit.diffusion.config import EVERYWHERE, GuidanceInterval, GuidedBy
from microdit.diffusion.objective import Objective
from microdit.model.conditioning import CachedCaptions, Captions, append_null_captions, null_captions, unpack
from microdit.model.masking.patch_mask import keep_none

Model = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W) float32, sigma (B,)) -> denoised (B, C, H, W)


Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, sigma) -> conditional and weaker prediction


def guided(
    denoiser: Objective,
    y: Captions,
    guidance: float,
    interval: GuidanceInterval = EVERYWHERE,
    by: GuidedBy = "caption",
) -> Model:
    """Return a model of (x, sigma) under classifier-free guidance.

    See arXiv 2207.12598, equation 6.

    Args:
        denoiser: the conditional model.
        y: caption features (B, S, Y). The null caption is all zeros, as in training's caption dropout. With
            `CachedCaptions` the network computes once what does not depend on the noise level.
        guidance: w; the result is weaker + w (conditional - weaker).
        interval: noise levels at which guidance applies. If it contains no level of a batch, only the conditional
            prediction is computed.
        by: what the weaker prediction lacks: "caption", or "path_drop" for the caption and the middle blocks (SPRINT,
            arXiv 2510.21986), which saves most of its cost.
    """

    def conditional(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma, y)

    if guidance == 1:
        return conditional
    pair = _by_path_drop(denoiser, y) if by == "path_drop" else _by_caption(denoiser, y)
    return GuidedModel(conditional, pair, guidance, interval)


@dataclass(frozen=True)
class GuidedModel:
    """Predict the denoised latents under guidance."""

    conditional: Model
    pair: Pair
    guidance: float
    interval: GuidanceInterval

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the prediction at noise levels that may differ between images.

        Unless guidance applies everywhere, it waits for the device, to skip the weaker prediction if all are outside.

        Args:
            x: noisy latents (B, C, H, W).
            sigma: noise level of each (B,).

        Returns:
            (B, C, H, W).
        """
        if self.interval.everywhere:
            return self._everywhere(x, sigma)
        inside = self.interval.contains(sigma)
        if not inside.any():
            return self.conditional(x, sigma)
        conditional, null = self.pair(x, sigma)
        return torch.where(inside.view(-1, 1, 1, 1), null + self.guidance * (conditional - null), conditional)

    def at_level(self, x: Tensor, sigma: Tensor, level: float) -> Tensor:
        """Return the prediction at one noise level, without waiting for the device.

        Args:
            x: noisy latents (B, C, H, W).
            sigma: the level of each (B,), float32.
            level: the level, above 0.

        Returns:
            (B, C, H, W).
        """
        low, high = self.interval.sigma_low, self.interval.sigma_high
        with np.errstate(over="ignore"):  # float32, as `sigma` and as in `contains`
            inside = np.float32(level) > np.float32(low) and (high is None or np.float32(level) <= np.float32(high))
        return self._everywhere(x, sigma) if inside else self.conditional(x, sigma)

    def _everywhere(self, x: Tensor, sigma: Tensor) -> Tensor:
        conditional, null = self.pair(x, sigma)
        return null + self.guidance * (conditional - null)


def _by_caption(denoiser: Objective, y: Captions) -> Pair:
    if isinstance(y, CachedCaptions):
        null = null_captions(y)
        return lambda x, sigma: (denoiser(x, sigma, y), denoiser(x, sigma, null))
    both = append_null_captions(y)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:  # one batch of 2B serves both
        conditional, null = denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return conditional, null

    return pair


def _by_path_drop(denoiser: Objective, y: Captions) -> Pair:
    null = null_captions(y) if isinstance(y, CachedCaptions) else append_null_captions(y)[len(y) :]
    around = keep_none(len(y), denoiser.net.config.side**2, unpack(y)[0].device)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser(x, sigma, y), denoiser(x, sigma, null, around)

    return pair
