"""Implement the patch-mixer (arXiv 2407.15811, section 3).

Its light layers see all patches before most patches are dropped.

B batch, T patches, K kept patches, S text tokens, D model width, M mixer width.
"""

from __future__ import annotations

from torch import Tensor, nn

from microdit.common.registry import Registry
from microdit.model.conditioning import Captions, map_tokens
from microdit.model.config import DiTConfig
from microdit.model.cost.flops import linear_flops
from microdit.model.layers import registry
from microdit.model.layers.block_stacks import mixer_blocks
from microdit.model.layers.norm import Norm


class Mixer(nn.Module):
    """Mix all patches before the mask is applied; base class. Implement `forward`.

    Args:
        config: the architecture; `config.mixer` has depth and widths, `config.mixer.options` free keys.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:
        """Return mixed patches.

        Args:
            x: patches (B, T, D).
            c: noise level and pooled caption (B, D).
            y: caption tokens (B, S, D).

        Returns:
            (B, T, M).
        """
        raise NotImplementedError

    def project_out(self, x: Tensor) -> Tensor:
        """Map kept patches to the model's width.

        It runs after masking, so that fewer patches are mapped.

        Args:
            x: (B, K, M).

        Returns:
            (B, K, D).
        """
        return x

    def flops(self, tokens: int, kept: int, text_tokens: int) -> int:
        """Return the FLOPs for one image.

        Override it if some matrix products are not linears over every patch.

        Args:
            tokens: T.
            kept: K.
            text_tokens: S.
        """
        return linear_flops(self, tokens)


class NoMixer(Mixer):
    """Pass patches to the backbone unchanged."""

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:
        return x


class PatchMixer(Mixer):
    """Mix all patches with DiT blocks at the mixer's width.

    If it differs from the model's width, linear maps lead in and out.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)

        def between(width_in: int, width_out: int) -> nn.Module:
            if width_in == width_out:
                return nn.Identity()
            return nn.Sequential(Norm(width_in, config.norm_eps), nn.Linear(width_in, width_out, bias=False))

        self.map_in = between(config.width, config.mixer_width)
        self.map_caption = between(config.width, config.mixer_width)
        self.blocks = nn.ModuleList(mixer_blocks(config))
        self.map_out = between(config.mixer_width, config.width)

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:
        x, y = self.map_in(x), map_tokens(self.map_caption, y)
        for block in self.blocks:
            x = block(x, c, y)
        return x

    def project_out(self, x: Tensor) -> Tensor:
        return self.map_out(x)

    def flops(self, tokens: int, kept: int, text_tokens: int) -> int:
        maps = linear_flops(self.map_in, tokens) + linear_flops(self.map_caption, text_tokens)
        blocks = sum(block.flops(tokens, text_tokens) for block in self.blocks)  # type: ignore[operator]
        return maps + blocks + linear_flops(self.map_out, kept)


MIXERS: Registry[type[Mixer]] = registry.MIXERS
register_mixer = MIXERS.register


def build_mixer(config: DiTConfig, used: bool) -> Mixer:
    """Build the mixer that `config` names, if one is needed.

    Args:
        config: the architecture.
        used: whether the masking method uses a mixer.

    Returns:
        A `NoMixer` if none is used or its depth is 0.

    Raises:
        ConfigError: if the mixer's name is unknown.
    """
    return MIXERS.resolve(config.mixer.type)(config) if used and config.mixer.depth else NoMixer(config)
