"""The patch-mixer: light blocks over all patches before most of them are dropped (arXiv 2407.15811 section 3).

B batch, T patches, K kept patches, S text tokens, D model width, M mixer width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from microdit.errors import ConfigError
from microdit.limits import check_limits
from microdit.model.blocks import DiTBlock
from microdit.model.captions import Captions, over_tokens
from microdit.model.counting import linear_flops


@dataclass(frozen=True)
class MixerConfig:
    """The patch-mixer of deferred masking; methods without a mixer ignore it."""

    depth: int = 4
    width: int | None = None  # null: the model's
    head_dim: int | None = None  # null: the model's
    attn_ratio: float = 1.0
    ffn_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_limits("model.mixer", self, depth=4096, width=1 << 17, head_dim=1 << 14, attn_ratio=1024, ffn_ratio=1024)
        if self.depth < 0:
            raise ConfigError(f"'model.mixer.depth' is {self.depth}; it must be at least 0")
        for key in ("attn_ratio", "ffn_ratio"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"'model.mixer.{key}' is {getattr(self, key)}; it must be above 0")
        for key in ("width", "head_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"'model.mixer.{key}' is {getattr(self, key)}; it must be at least 1, or null")


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
        x, y = self.map_in(x), over_tokens(self.map_caption, y)
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
