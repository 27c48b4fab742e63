"""Implement MaskDiT (arXiv 2306.09305).

See Zheng et al., "Fast Training of Diffusion Models with Masked Transformers".

B batch, T patches, K kept patches, V values of a patch, W model width, D decoder width, S text tokens, C latent
channels, H W latent size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from microdit.model.conditioning import Captions, map_tokens
from microdit.model.config import DiTConfig
from microdit.model.cost.flops import linear_flops
from microdit.model.layers.blocks import BlockShape, DiTBlock, FinalLayer
from microdit.model.layers.embeddings import add_positions, sincos_positions
from microdit.model.layers.feed_forward import FEED_FORWARDS
from microdit.model.masking.base import Masking, MaskingLossInputs, scatter_tokens
from microdit.model.masking.patch_mask import PatchMask
from microdit.model.masking.requirements import check_decoder, decoder_sizes
from microdit.model.width_schedules import hidden_width


class MaskDiT(Masking):
    """Encode visible patches with the backbone, then decode all patches.

    A light decoder receives the encoded patches, and a mask token in place of each dropped one.

    The loss is the denoising error on visible patches (section 3.3, equation 3) plus `reconstruction` times a masked
    autoencoder's error on the others (equation 4): the squared distance between D(x; sigma) and the *noisy* patch, each
    patch normalized to mean 0 and variance 1 as in the authors' code. Samplers run encoder and decoder on all patches.
    """

    pos_embed: Tensor  # (1, T, D), fixed

    @classmethod
    def check(cls, config: DiTConfig) -> None:
        check_decoder(config)

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        decoder, self.patch_size = config.masking.decoder, config.patch_size
        width, head_dim = decoder_sizes(config)
        self.head_width = width
        shape = BlockShape(width, config.width, head_dim, config.bias, config.qk_norm, config.norm_eps)
        self.enter = FinalLayer(replace(shape, width=config.width), width)
        self.map_caption = nn.Identity() if width == config.width else nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer(
            "pos_embed", sincos_positions(width, config.side, config.pos_interp_scale), persistent=False
        )
        kind = FEED_FORWARDS.resolve(config.ffn.type)
        hidden = hidden_width(width, decoder.ffn_ratio, kind.matrices, config.ffn_width.multiple_of)
        self.blocks = nn.ModuleList(
            DiTBlock(shape, width, kind(width, hidden, config.bias)) for _ in range(decoder.depth)
        )

    def leaving(self, masked: bool) -> int:
        return self.side**2

    def backbone(self, blocks: nn.ModuleList, x: Tensor, c: Tensor, y: Captions, plan: PatchMask | None) -> Tensor:
        """Run the encoder on visible patches and the decoder on all.

        Args:
            blocks: the encoder.
            x: visible tokens (B, K, W).
            c: noise level and pooled caption (B, W).
            y: caption tokens (B, S, W).
            plan: the kept patches; None: all.

        Returns:
            Tokens for the head (B, T, D).
        """
        x = self.enter(super().backbone(blocks, x, c, y, plan), c)
        if plan is not None:
            dropped = plan.mask.shape[1] - x.shape[1]
            x = scatter_tokens(x, self.mask_token.to(x.dtype).expand(len(x), dropped, -1), plan)
        x, y = add_positions(x, self.pos_embed, self.keeps_dtype), map_tokens(self.map_caption, y)
        for block in self.blocks:
            x = block(x, c, y)
        return x

    def restore(self, out: Tensor, plan: PatchMask | None) -> Tensor:
        """Return `out` unchanged, since the decoder predicts every patch.

        Args:
            out: (B, T, V).
            plan: ignored.

        Returns:
            (B, T, V).
        """
        return out

    def loss(self, seen: MaskingLossInputs, plan: PatchMask | None) -> Tensor:
        loss = super().loss(seen, plan)
        if plan is None or not self.config.reconstruction:
            return loss
        target = self._patches(seen.noisy)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        error = (self._patches(seen.output) - (target - mean) / (variance + 1e-6).sqrt()).square().mean(-1)  # (B, T)
        return loss + self.config.reconstruction * (error * plan.mask).sum(1) / plan.mask.sum(1)

    def _patches(self, x: Tensor) -> Tensor:
        """Cut latents (B, C, H, W) into patches (B, T, V)."""
        return nn.functional.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)

    def own_flops(self, masked: bool, text_tokens: int) -> int:
        blocks = sum(block.flops(self.side**2, text_tokens) for block in self.blocks)  # type: ignore[operator]
        return self.enter.flops(self.entering(masked)) + linear_flops(self.map_caption, text_tokens) + blocks
