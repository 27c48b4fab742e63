"""The small CLIP that only scores: trained apart from the one that conditions, never seen by the network.

B batch, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from microdit.encoders.open_clip_folder import clip_fingerprint, open_clip_folder


class ScoringClip:
    """Image and caption embeddings of unit length in one space."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from microdit.assets import SCORE_CLIP

        self._clip = open_clip_folder(SCORE_CLIP, "score_clip", device)
        self._device = torch.device(device)
        self.fingerprint = self._clip.fingerprint
        self.width = int(self._clip.model.visual.output_dim)

    @staticmethod
    def digest() -> str:
        """The fingerprint, without loading the network."""
        from microdit.assets import SCORE_CLIP

        return clip_fingerprint(SCORE_CLIP)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, E) float32, not normalised; other sizes are resized, antialiased."""
        x = images.to(self._device).permute(0, 3, 1, 2).float() / 255
        size = self._clip.image_size
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean = torch.tensor(self._clip.mean, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(self._clip.std, device=self._device).view(1, 3, 1, 1)
        return self._clip.model.encode_image((x - mean) / std).float()

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, E) float32 of unit length."""
        return F.normalize(self.image_features(images), dim=-1)

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E) float32."""
        tokens = self._clip.tokenize(list(captions)).to(self._device)
        return F.normalize(self._clip.model.encode_text(tokens), dim=-1).float()
