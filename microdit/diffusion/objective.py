"""Define the training objective: the network's target and the loss.

B batch, C latent channels, H W latent height and width, T patches, S text tokens, Y text width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from microdit.diffusion.config import DEFAULT_DIFFUSION, DiffusionConfig
from microdit.model import DiT, MaskingLossInputs, PatchMask
from microdit.model.conditioning import Captions


class Objective(nn.Module):
    """Build a denoiser D(x; sigma) and its loss from a network; base class.

    Implement `forward` and `loss_weight`. An objective has no parameters of its own.

    The state x of training and of all samplers is clean + sigma * noise, with unit normal noise. Any other Gaussian
    path a clean + b noise is this one divided by a, with sigma = b / a. An objective on such a path scales x in
    `forward` (flow matching: x / (1 + sigma), t = sigma / (1 + sigma)). All samplers, noise schedules, noise
    distributions and guidance then work with it. The network must not depend on sigma except through its inputs.

    Args:
        net: predicts (B, C, H, W) from scaled latents, a number per image that encodes the noise level, and captions.
        sigma_data: standard deviation of the latents.
        config: settings of the diffusion; `config.options` holds free keys.
    """

    def __init__(self, net: DiT, sigma_data: float, config: DiffusionConfig = DEFAULT_DIFFUSION) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data
        self.config = config

    def forward(self, x: Tensor, sigma: Tensor, y: Captions, plan: PatchMask | None = None) -> Tensor:
        """Return the denoised latents.

        Args:
            x: noisy latents (B, C, H, W).
            sigma: noise level of each (B,), above 0.
            y: caption features (B, S, Y); zeros are the null caption.
            plan: the patches to keep; None: all. Values at dropped patches are not used.

        Returns:
            (B, C, H, W), float32.
        """
        raise NotImplementedError

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return the weight of the squared error of D.

        Args:
            sigma: noise levels (B,).

        Returns:
            (B,).
        """
        raise NotImplementedError

    def loss(self, x: Tensor, y: Captions, sigma: Tensor, noise: Tensor, plan: PatchMask | None = None) -> Tensor:
        """Return the loss of each image.

        It is the weighted squared error, averaged over patches as the masking method defines.

        Args:
            x: clean latents (B, C, H, W).
            y: caption features (B, S, Y).
            sigma: noise levels (B,).
            noise: unit normal (B, C, H, W).
            plan: the patches to keep; None: all.

        Returns:
            (B,).
        """
        noisy = x + sigma.view(-1, 1, 1, 1) * noise
        denoised = self(noisy, sigma, y, plan)
        error = (denoised - x).square().mean(1, keepdim=True)  # (B, 1, H, W)
        error = F.avg_pool2d(error, self.net.config.patch_size).flatten(1)  # (B, T)
        error = self.loss_weight(sigma).unsqueeze(1) * error
        return self.net.masking.loss(MaskingLossInputs(error, noisy, denoised), plan)
