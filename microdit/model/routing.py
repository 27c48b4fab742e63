"""Methods that spare the middle of the backbone some patches without ever losing them.

B batch, T patches, K kept patches, D width, S text tokens. The first `route.before` and the last `route.after` blocks
see all patches, so that the loss is over all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from microdit.errors import ConfigError
from microdit.model.captions import Captions
from microdit.model.counting import linear_flops
from microdit.model.mask_plan import MaskPlan, keep_all
from microdit.model.masking import Denoised, Masking, keep, spread

if TYPE_CHECKING:
    from microdit.model.config import DiTConfig


class TokenRouting(Masking):
    """TREAD (Krause et al., arXiv 2501.04765 section 3): patches that are not kept skip the middle blocks.

    They come back as they were where the route ends. A network without a plan is a plain DiT.
    """

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        route = config.masking.route
        if route.before + route.after > config.depth:
            raise ConfigError(
                f"'model.masking.route' has {route.before} blocks before and {route.after} after it, which are more "
                f"than 'model.depth' ({config.depth})"
            )

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        route = config.masking.route
        self.start, self.stop = route.before, config.depth - route.after

    def entering(self, masked: bool) -> int:
        return self.side**2

    def drop(self, x: Tensor, plan: MaskPlan | None) -> Tensor:
        return x

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: MaskPlan | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for block in blocks[: self.start]:
            x = block(x, c, y)
        deep = keep(x, plan)
        for block in blocks[self.start : self.stop] if deep.shape[1] else ():
            deep = block(deep, c, y)
        x = self.join(x, deep, plan)
        for block in blocks[self.stop :]:
            x = block(x, c, y)
        return x

    def join(self, x: Tensor, deep: Tensor, plan: MaskPlan | None) -> Tensor:
        """Tokens before the route (B, T, D) and those that went along it (B, K, D) -> (B, T, D)."""
        if plan is None:
            return deep
        skipped = plan.ids_restore.argsort(1)[:, deep.shape[1] :]  # (B, T - K), without a shape that hangs on the data
        return spread(deep, x.gather(1, skipped.unsqueeze(-1).expand(-1, -1, x.shape[-1])), plan)

    def restore(self, out: Tensor, plan: MaskPlan | None) -> Tensor:
        return out

    def loss(self, seen: Denoised, plan: MaskPlan | None) -> Tensor:
        return seen.error.mean(1)

    def seen_by(self, index: int, masked: bool) -> int:
        return self.kept if masked and self.start <= index < self.stop else self.side**2


class SparseDenseFusion(TokenRouting):
    """SPRINT (Park et al., arXiv 2510.21986 section 3): shallow features of all patches, deep ones of the kept.

    Where the deep path has no token a learned one stands; both are concatenated and projected back to the width. In
    training a share of images (`route.path_drop`; the authors' code takes 0.1) has no deep path at all, so that
    path-drop guidance may leave it out at sampling. Patches are dropped at random, not one in each group of four.
    """

    drops_paths = True

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.fuse = nn.Linear(2 * config.width, config.width)

    def plan(self, batch: int, generator: torch.Generator) -> MaskPlan | None:
        return self._with_shallow(super().plan(batch, generator), batch, generator)

    def unmasked_plan(self, batch: int, generator: torch.Generator) -> MaskPlan | None:
        return self._with_shallow(None, batch, generator)

    def _with_shallow(self, plan: MaskPlan | None, batch: int, generator: torch.Generator) -> MaskPlan | None:
        share = self.config.route.path_drop
        if not share:
            return plan
        shallow = torch.rand(batch, generator=generator, device=generator.device) < share
        return replace(plan or keep_all(batch, self.side**2, generator.device), shallow=shallow)

    def join(self, x: Tensor, deep: Tensor, plan: MaskPlan | None) -> Tensor:
        if plan is not None:
            token = self.mask_token.to(deep.dtype)  # (1, 1, D)
            deep = spread(deep, token.expand(len(x), x.shape[1] - deep.shape[1], -1), plan)
            if plan.shallow is not None:  # computed all the same: other images of the batch need the blocks
                deep = torch.where(plan.shallow.view(-1, 1, 1), token, deep)
        return self.fuse(torch.cat([x, deep], dim=-1))

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        return linear_flops(self.fuse, self.side**2)
