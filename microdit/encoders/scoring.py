"""The small CLIP that only scores: trained apart from the one that conditions, never seen by the network.

B batch, E embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from microdit.encoders.open_clip_folder import CONFIG, clip_fingerprint, open_clip_folder


class ScoringClip:
    """Image and caption embeddings of unit length in one space."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from microdit.assets import SCORE_CLIP

        self._clip = open_clip_folder(SCORE_CLIP, "score_clip", device)
        self.fingerprint = self._clip.fingerprint
        self.width = int(self._clip.model.visual.output_dim)

    @staticmethod
    @cache
    def digest() -> str:
        """The fingerprint, without loading the network."""
        from microdit.assets import SCORE_CLIP

        return clip_fingerprint(SCORE_CLIP)

    @staticmethod
    def embedding_width() -> int:
        """E, without loading the network."""
        from microdit.assets import SCORE_CLIP

        settings = json.loads((SCORE_CLIP / CONFIG).read_text(encoding="utf-8"))
        return int(settings["model_cfg"]["embed_dim"])

    def image_features(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, E) float32, not normalised; other sizes are resized, antialiased."""
        return self._clip.image_features(images)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, E) float32 of unit length."""
        return self._clip.embed_images(images)

    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, E) float32."""
        return self._clip.embed_texts(captions)


@lru_cache(maxsize=2)
def scoring_clip(device: str) -> ScoringClip:
    """The process' own, loaded once."""
    return ScoringClip(device)
