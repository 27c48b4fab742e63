"""The patch-mixer: light blocks over all patches before most of them are dropped (arXiv 2407.15811 section 3).

B batch, T patches, K kept patches, S text tokens, D model width, M mixer width.
"""

from __future__ import annotations

from torch import Tensor, nn

from microdit.model.conditioning import Captions, map_tokens
from microdit.model.cost.flops import linear_flops
from microdit.model.layers.blocks import DiTBlock


class NoMixer(nn.Module):
    """Patches go to the backbone as they are."""

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:
        return x

    def project_out(self, x: Tensor) -> Tensor:
        return x

    def flops(self, tokens: int, kept: int, text_tokens: int) -> int:
        return 0


class PatchMixer(nn.Module):
    """Blocks at their own width; maps lead in and out where it differs from the model's."""

    def __init__(self, width: int, mixer_width: int, eps: float, blocks: list[DiTBlock]) -> None:
        super().__init__()

        def between(width_in: int, width_out: int) -> nn.Module:
            if width_in == width_out:
                return nn.Identity()
            return nn.Sequential(
                nn.LayerNorm(width_in, eps=eps, bias=False), nn.Linear(width_in, width_out, bias=False)
            )

        self.map_in = between(width, mixer_width)
        self.map_caption = between(width, mixer_width)
        self.blocks = nn.ModuleList(blocks)
        self.map_out = between(mixer_width, width)

    def forward(self, x: Tensor, c: Tensor, y: Captions) -> Tensor:  # (B, T, D), (B, D), (B, S, D) -> (B, T, M)
        x, y = self.map_in(x), map_tokens(self.map_caption, y)
        for block in self.blocks:
            x = block(x, c, y)
        return x

    def project_out(self, x: Tensor) -> Tensor:
        """Back to the model's width, after masking: only kept patches pay for it; (B, K, M) -> (B, K, D)."""
        return self.map_out(x)

    def flops(self, tokens: int, kept: int, text_tokens: int) -> int:
        maps = linear_flops(self.map_in, tokens) + linear_flops(self.map_caption, text_tokens)
        blocks = sum(block.flops(tokens, text_tokens) for block in self.blocks)  # type: ignore[operator]
        return maps + blocks + linear_flops(self.map_out, kept)
