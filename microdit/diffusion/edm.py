"""Implement EDM's preconditioning and loss weight.

See Karras et al., arXiv 2206.00364, section 5 and table 1.

B batch, C latent channels, H W latent height and width, S text tokens, Y text width.
"""

from __future__ import annotations

from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.registry import Registry
from microdit.diffusion import registry
from microdit.diffusion.config import DiffusionConfig
from microdit.diffusion.objective import Objective
from microdit.model import DiT, PatchMask
from microdit.model.conditioning import Captions


class EDM(Objective):
    """Compute D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), EDM equation 7."""

    def forward(self, x: Tensor, sigma: Tensor, y: Captions, plan: PatchMask | None = None) -> Tensor:
        s = sigma.float().view(-1, 1, 1, 1)
        variance = s.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = s * self.sigma_data * variance.rsqrt()
        c_in = variance.rsqrt()
        c_noise = sigma.float().log() / 4
        return c_skip * x + c_out * self.net(c_in * x, c_noise, y, plan).float()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()


OBJECTIVES: Registry[type[Objective]] = registry.OBJECTIVES
register_objective = OBJECTIVES.register


def build_objective(config: DiffusionConfig, net: DiT, sigma_data: float) -> Objective:
    """Build the objective that `config` names around a network.

    Args:
        config: settings of the diffusion.
        net: the network F.
        sigma_data: standard deviation of the latents.

    Returns:
        The denoiser D, with the loss.

    Raises:
        ConfigError: if the name is unknown, or the objective has parameters besides the network's.
    """
    objective = OBJECTIVES.resolve(config.objective)(net, sigma_data, config)
    own = [name for name, _ in objective.named_parameters() if not name.startswith("net.")]
    if own:
        raise ConfigError(
            f"'diffusion.objective' is '{config.objective}', which has parameters of its own ({own[0]}); only the "
            "network's are trained, so give it none"
        )
    return objective
