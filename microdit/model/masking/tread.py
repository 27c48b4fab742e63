"""Implement TREAD: tokens skip the middle blocks without being lost.

B batch, T patches, K kept patches, D width, S text tokens. The first `route.before` and the last `route.after` blocks
see all patches, so the loss is over all of them.
"""

from __future__ import annotations

from torch import Tensor, nn

from microdit.model.conditioning import Captions
from microdit.model.config import DiTConfig
from microdit.model.masking.base import Masking, MaskingLossInputs, gather_kept, scatter_tokens
from microdit.model.masking.patch_mask import PatchMask
from microdit.model.masking.requirements import check_route


class TokenRouting(Masking):
    """Let patches that are not kept skip the middle blocks.

    This is TREAD (Krause et al., arXiv 2501.04765, section 3). The patches rejoin the others unchanged after the last
    of these blocks. Without a plan the network is a plain DiT.
    """

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        check_route(config)

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        route = config.masking.route
        self.start, self.stop = route.before, config.depth - route.after

    def entering(self, masked: bool) -> int:
        return self.side**2

    def drop(self, x: Tensor, plan: PatchMask | None) -> Tensor:
        return x

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: PatchMask | None) -> Tensor:
        """Run all blocks, the middle ones on kept tokens only.

        Args:
            blocks: the backbone.
            x: all tokens (B, T, D).
            c: noise level and pooled caption (B, D).
            y: caption tokens (B, S, D).
            plan: the kept patches; None: all.

        Returns:
            All tokens (B, T, D).
        """
        for block in blocks[: self.start]:
            x = block(x, c, y)
        deep = gather_kept(x, plan)
        for block in blocks[self.start : self.stop] if deep.shape[1] else ():
            deep = block(deep, c, y)
        x = self.join(x, deep, plan)
        for block in blocks[self.stop :]:
            x = block(x, c, y)
        return x

    def join(self, x: Tensor, deep: Tensor, plan: PatchMask | None) -> Tensor:
        """Return all tokens after the middle blocks.

        Args:
            x: all tokens before the middle blocks (B, T, D).
            deep: kept tokens after them (B, K, D).
            plan: the kept patches; None: all.

        Returns:
            (B, T, D).
        """
        if plan is None:
            return deep
        skipped = plan.ids_restore.argsort(1)[:, deep.shape[1] :]  # (B, T - K)
        return scatter_tokens(deep, x.gather(1, skipped.unsqueeze(-1).expand(-1, -1, x.shape[-1])), plan)

    def restore(self, out: Tensor, plan: PatchMask | None) -> Tensor:
        return out

    def loss(self, seen: MaskingLossInputs, plan: PatchMask | None) -> Tensor:
        return seen.error.mean(1)

    def seen_by(self, index: int, masked: bool) -> int:
        return self.kept if masked and self.start <= index < self.stop else self.side**2
