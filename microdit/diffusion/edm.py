"""EDM: preconditioning, noise distribution and loss (Karras et al., arXiv 2206.00364, section 5 and table 1).

B batch, C latent channels, H W latent height and width, T patches, S text tokens, Y text width.
The network knows nothing of sigma; `Denoiser` owns every scaling and the loss weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.common.limits import Range, check_settings
from microdit.model import DiT, MaskingLossInputs, PatchMask
from microdit.model.conditioning import Captions


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise levels seen in training: ln(sigma) ~ N(p_mean, p_std^2); `sigma_data` None measures it on the data."""

    p_mean: Annotated[float, Range(-100, 100)] = -0.6
    p_std: Annotated[float, Range(above=0, most=100)] = 1.2
    sigma_data: Annotated[float | None, Range(above=0, most=1e12)] = None

    def __post_init__(self) -> None:
        check_settings("diffusion", self)


def draw_sigma(batch: int, config: DiffusionConfig, generator: torch.Generator) -> Tensor:
    """Training noise levels (B,), log-normal (EDM, table 1, "noise distribution")."""
    return (torch.randn(batch, generator=generator) * config.p_std + config.p_mean).exp()


def quantile_sigma(count: int, config: DiffusionConfig) -> Tensor:
    """`count` noise levels (count,) at the mid-quantiles of the training distribution, ascending.

    They integrate over the same distribution as `draw_sigma` without its sampling noise, so that a validation loss
    moves only with the weights.
    """
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (torch.special.ndtri(quantiles) * config.p_std + config.p_mean).exp().float()


class Denoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), EDM equation 7."""

    def __init__(self, net: DiT, sigma_data: float) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Tensor, y: Captions, plan: PatchMask | None = None) -> Tensor:
        """The denoised latent.

        Args:
            x: noisy latents (B, C, H, W).
            sigma: noise level of each (B,), above 0.
            y: caption features (B, S, Y); zeros are the null caption.
            plan: which patches to keep; the others come back as c_skip x alone.
        """
        s = sigma.float().view(-1, 1, 1, 1)
        variance = s.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = s * self.sigma_data * variance.rsqrt()
        c_in = variance.rsqrt()
        c_noise = sigma.float().log() / 4
        return c_skip * x + c_out * self.net(c_in * x, c_noise, y, plan).float()

    def loss(self, x: Tensor, y: Captions, sigma: Tensor, noise: Tensor, plan: PatchMask | None = None) -> Tensor:
        """Loss of each image (B,), as the masking method counts the weighted error of patches; EDM equations 2 and 8.

        Args:
            x: clean latents (B, C, H, W).
            y: caption features (B, S, Y).
            sigma: (B,); noise: unit normal (B, C, H, W).
        """
        noisy = x + sigma.view(-1, 1, 1, 1) * noise
        denoised = self(noisy, sigma, y, plan)
        weight = (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()  # (B,)
        error = (denoised - x).square().mean(1, keepdim=True)  # (B, 1, H, W)
        error = F.avg_pool2d(error, self.net.config.patch_size).flatten(1)  # (B, T)
        return self.net.masking.loss(MaskingLossInputs(weight.unsqueeze(1) * error, noisy, denoised), plan)
