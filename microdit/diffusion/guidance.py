"""Classifier-free guidance, by captions or by path-drop, and the noise levels at which it applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import InfiniteFloat
from microdit.diffusion.edm import Denoiser
from microdit.model.conditioning import Captions, append_null_captions, unpack
from microdit.model.masking.patch_mask import keep_none

Model = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, H, W) float32, sigma (B,)) -> denoised (B, C, H, W)


@dataclass(frozen=True)
class GuidanceInterval:
    """Noise levels at which guidance applies: sigma_low < sigma <= sigma_high; by default all of them.

    Elsewhere the conditional model runs alone (Kynkäänniemi et al., arXiv 2404.07724, section 3).
    """

    sigma_low: Annotated[float, Range(0)] = 0.0
    sigma_high: InfiniteFloat | None = None  # null: no upper end

    def __post_init__(self) -> None:
        check_settings("sampler.guidance_interval", self)
        if self.sigma_high is not None and not self.sigma_high > self.sigma_low:
            raise ConfigError(
                f"'sampler.guidance_interval.sigma_high' is {self.sigma_high}; it must be above 'sigma_low' "
                f"({self.sigma_low}), or null for no upper end"
            )

    @property
    def everywhere(self) -> bool:
        """Whether no level is left out."""
        return self.sigma_low == 0 and self.sigma_high is None

    def contains(self, sigma: Tensor) -> Tensor:
        """Which of the levels (B,) lie inside; (B,) bool. The ends are rounded as the levels are."""
        above = sigma > self.sigma_low
        return above if self.sigma_high is None else above & (sigma <= self.sigma_high)


EVERYWHERE = GuidanceInterval()

GuidedBy = Literal["caption", "path_drop"]  # what the weaker prediction goes without


def guided(
    denoiser: Denoiser,
    y: Captions,
    guidance: float,
    interval: GuidanceInterval = EVERYWHERE,
    by: GuidedBy = "caption",
) -> Model:
    """A model of (x, sigma) for captions `y` (B, S, Y) under classifier-free guidance (arXiv 2207.12598, equation 6).

    The null caption is all zeros, as in training's caption dropout. Where no level of the batch lies in `interval`, the
    conditional prediction is made alone. `by` path_drop makes the weaker prediction without the middle blocks, too
    (SPRINT's path-drop guidance, arXiv 2510.21986), which spares most of its cost.
    """
    if guidance == 1:
        return lambda x, sigma: denoiser(x, sigma, y)
    pair = _by_path_drop(denoiser, y) if by == "path_drop" else _by_caption(denoiser, y)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        inside = interval.contains(sigma)
        if not interval.everywhere and not inside.any():  # in this order: any() waits for the device
            return denoiser(x, sigma, y)
        conditional, null = pair(x, sigma)
        return torch.where(inside.view(-1, 1, 1, 1), null + guidance * (conditional - null), conditional)

    return model


Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, sigma) -> what the caption gives, and the weaker one


def _by_caption(denoiser: Denoiser, y: Captions) -> Pair:
    both = append_null_captions(y)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:  # one batch of 2B serves both
        conditional, null = denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return conditional, null

    return pair


def _by_path_drop(denoiser: Denoiser, y: Captions) -> Pair:
    null_caption = append_null_captions(y)[len(y) :]
    around = keep_none(len(y), denoiser.net.config.side**2, unpack(y)[0].device)

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return denoiser(x, sigma, y), denoiser(x, sigma, null_caption, around)

    return pair
