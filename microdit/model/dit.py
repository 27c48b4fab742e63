"""Define the diffusion transformer: embed, mix, mask, backbone, head, unmask.

B batch, C latent channels, h w latent height and width, T patches, K kept patches, S text tokens, Y text width, D
width, p patch size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from microdit.common.rng import RowDraws
from microdit.model.conditioning import CachedCaptions, Captions, mean_token, replace_empty_captions, unpack, with_mask
from microdit.model.config import DiTConfig
from microdit.model.init import initialize
from microdit.model.layers.block_stacks import backbone_blocks
from microdit.model.layers.blocks import BlockShape, CaptionBlock, DiTBlock, FinalLayer
from microdit.model.layers.embeddings import CaptionMLP, PatchEmbed, TimestepEmbedder, add_positions, sincos_positions
from microdit.model.layers.feed_forward import SwiGLU
from microdit.model.layers.norm import Norm
from microdit.model.layers.patch_mixer import build_mixer
from microdit.model.masking.patch_mask import PatchMask
from microdit.model.masking.registry import build_masking
from microdit.model.presets import preset
from microdit.model.validate import check_model
from microdit.model.width_schedules import hidden_width


class DiT(nn.Module):
    """Implement DiT with captions, deferred masking and width schedules.

    See arXiv 2212.09748 for DiT and arXiv 2407.15811 for the rest.

    Args:
        config: the architecture.
        seed: of the initial weights. Each parameter has its own random stream, so networks that differ in one part
            start equal in all others. None leaves the weights uninitialized, for loading.
    """

    pos_embed: Tensor  # (1, T, D), fixed, so not among the weights
    keeps_dtype = False  # whether tokens have the dtype of the embedded patches, under autocast; else float32

    def __init__(self, config: DiTConfig, seed: int | None = 0) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        shape = BlockShape(config.width, config.width, config.head_dim, config.bias, config.qk_norm, config.norm_eps)
        self.register_buffer(
            "pos_embed", sincos_positions(config.width, config.side, config.pos_interp_scale), persistent=False
        )
        self.x_embedder = PatchEmbed(config.in_channels, config.patch_size, config.width)
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = CaptionMLP(config.caption_channels, config.width, config.norm_eps)
        caption_hidden = hidden_width(
            config.width, config.caption_ffn_ratio, SwiGLU.matrices, config.ffn_width.multiple_of
        )
        self.caption_block = CaptionBlock(shape, SwiGLU(config.width, caption_hidden, config.bias))
        self.pooled_embedder = CaptionMLP(config.width, config.width, config.norm_eps)
        self.masking = build_masking(config)
        self.mixer = build_mixer(config, self.masking.uses_mixer)
        self.blocks = nn.ModuleList(backbone_blocks(config, shape))
        head = replace(shape, width=self.masking.head_width)
        self.final_layer = FinalLayer(head, config.patch_size**2 * config.in_channels)
        if seed is not None:
            initialize(self, seed)

    @classmethod
    def from_preset(cls, name: str, seed: int | None = 0) -> DiT:
        """Build the network of a preset, such as "DiT-Tiny/2".

        Args:
            name: one of `list_presets()`, or a released name such as "MicroDiT_XL_2".
            seed: of the initial weights; None leaves them uninitialized, for loading.

        Returns:
            A network for latents of 32 x 32 x 4 and captions of 1024 channels.

        Raises:
            ConfigError: if there is no such preset; suggests the nearest name.
        """
        return cls(preset(name), seed)

    def forward(self, x: Tensor, t: Tensor, y: Captions, plan: PatchMask | None = None) -> Tensor:
        """Return the network's output for scaled noisy latents.

        See `microdit.diffusion.EDM` for the scalings.

        Args:
            x: scaled noisy latents (B, C, h, w).
            t: noise levels (B,) as c_noise = ln(sigma) / 4.
            y: caption features (B, S, Y), with a mask if some tokens are padding; zeros are the null caption.
            plan: the patches to keep; None: all.

        Returns:
            (B, C, h, w), zero at dropped patches unless the masking method predicts these too.
        """
        x = add_positions(self.x_embedder(x), self.pos_embed, self.keeps_dtype)  # (B, T, D)
        c, y = self.condition(t, y)  # (B, D), (B, S, D)
        x = self.mixer(x, c, y)
        x = self.mixer.project_out(self.masking.drop(x, plan))  # (B, K, D)
        x = self.masking.backbone(self.blocks, x, c, y, plan)  # (B, K, D)
        x = self.final_layer(x, c)  # (B, K, p p C)
        return self.unpatchify(self.masking.restore(x, plan))

    def condition(self, t: Tensor, y: Captions) -> tuple[Tensor, Captions]:
        """Return what conditions the blocks.

        Args:
            t: noise levels (B,) as c_noise.
            y: caption features (B, S, Y).

        Returns:
            Noise level plus pooled caption (B, D), and caption tokens for attention (B, S, D).
        """
        if isinstance(y, CachedCaptions):
            pooled, y = y.once(self, partial(self._cached_captions, y))
        else:
            pooled, y = self.embed_captions(y)
        return self.t_embedder(t) + pooled, y

    def embed_captions(self, y: Captions) -> tuple[Tensor, Captions]:
        """Return what the network computes from captions alone, once per evaluation.

        Args:
            y: caption features (B, S, Y).

        Returns:
            Pooled captions (B, D), and caption tokens for attention (B, S, D).
        """
        tokens, mask = replace_empty_captions(y)
        tokens = self.caption_block(self.y_embedder(tokens), mask)
        return self.pooled_embedder(mean_token(tokens, mask)), with_mask(tokens, mask)

    def _cached_captions(self, y: CachedCaptions) -> tuple[Tensor, CachedCaptions]:
        if not y.alike:
            pooled, tokens = self.embed_captions(y)
            return pooled, CachedCaptions(with_mask(*unpack(tokens)))
        features, _ = unpack(y)
        pooled, token = self.embed_captions(features[:, :1])  # tokens have no positions, so equal ones remain equal
        return pooled, CachedCaptions(unpack(token)[0].expand(-1, features.shape[1], -1), alike=True)

    def save_memory(self, half_residual: bool, checkpointing: bool) -> None:
        """Choose how a training step saves memory.

        Args:
            half_residual: under bf16 autocast, tokens and norms are bf16 instead of fp32.
            checkpointing: keep only the inputs of each block, and compute the rest again in the backward pass.
        """
        self.keeps_dtype = self.masking.keeps_dtype = half_residual
        for part in self.modules():
            if isinstance(part, Norm):
                part.keeps_dtype = half_residual
            if isinstance(part, DiTBlock):
                part.recomputes = checkpointing

    def unpatchify(self, x: Tensor) -> Tensor:
        """Arrange patches as latents.

        Args:
            x: (B, T, p p C); values within a patch are in (row, column, channel) order.

        Returns:
            (B, C, h, w).
        """
        side, p = self.config.side, self.config.patch_size
        x = x.view(len(x), side, side, p, p, self.config.in_channels)
        return torch.einsum("brspqc->bcrpsq", x).reshape(len(x), self.config.in_channels, side * p, side * p)

    def mask_plan(
        self, batch: int, generator: torch.Generator, masked: bool = True, rows: slice = slice(None)
    ) -> PatchMask | None:
        """Return a random mask for a training step.

        Args:
            batch: images of the whole batch.
            generator: source of randomness; its device is the mask's.
            masked: whether the step drops patches.
            rows: images of the batch to return; their masks don't depend on which others are returned.

        Returns:
            The plan for `forward`, or None if nothing is dropped.
        """
        draws = RowDraws(generator, batch, rows)
        return self.masking.plan(draws) if masked else self.masking.unmasked_plan(draws)
