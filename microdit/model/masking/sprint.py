"""Implement SPRINT, sparse-dense residual fusion (arXiv 2510.21986)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from microdit.common.rng import RowDraws
from microdit.model.config import DiTConfig
from microdit.model.cost.flops import linear_flops
from microdit.model.masking.base import scatter_tokens
from microdit.model.masking.patch_mask import PatchMask, keep_all
from microdit.model.masking.tread import TokenRouting


class SparseDenseFusion(TokenRouting):
    """Fuse shallow features of all patches with deep ones of kept patches.

    This is SPRINT (Park et al., arXiv 2510.21986, section 3).

    A learned token fills in for patches that skip the deep path. Both features are concatenated and projected to the
    width. In training, a share of images (`route.path_drop`; 0.1 in the authors' code) has no deep path at all, so that
    path-drop guidance can omit it when sampling. Patches are dropped at random, not one per group of four.
    """

    drops_paths = True

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.fuse = nn.Linear(2 * config.width, config.width)

    def plan(self, draws: RowDraws) -> PatchMask | None:
        return self._with_shallow(super().plan(draws), draws)

    def unmasked_plan(self, draws: RowDraws) -> PatchMask | None:
        return self._with_shallow(None, draws)

    def _with_shallow(self, plan: PatchMask | None, draws: RowDraws) -> PatchMask | None:
        share = self.config.route.path_drop
        if not share:
            return plan
        shallow = draws.uniform() < share
        return replace(plan or keep_all(draws.count, self.side**2, draws.device), shallow=shallow)

    def join(self, x: Tensor, deep: Tensor, plan: PatchMask | None) -> Tensor:
        if plan is not None:
            token = self.mask_token.to(deep.dtype)  # (1, 1, D)
            deep = scatter_tokens(deep, token.expand(len(x), x.shape[1] - deep.shape[1], -1), plan)
            if plan.shallow is not None:  # other images of the batch need the blocks
                deep = torch.where(plan.shallow.view(-1, 1, 1), token, deep)
        return self.fuse(torch.cat([x, deep], dim=-1))

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        return linear_flops(self.fuse, self.side**2)
