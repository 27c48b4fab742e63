"""Encode a small dataset with a text encoder that marks padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from microdit.data.config import DataConfig
from microdit.data.latents.training_data import EncodedDataset, encode_dataset
from microdit.data.registry import build_dataset
from microdit.encoders.autoencoder import Pixels
from microdit.model.conditioning import Captions, MaskedTokens


class Words:
    """Encode each word as a feature from its digest, with configurable padding."""

    width, length = 6, 24

    def __init__(self, masked: bool) -> None:
        self.masked = masked
        self.fingerprint = f"words-{masked}"

    def encode(self, captions: Sequence[str]) -> Captions:
        tokens = torch.zeros(len(captions), self.length, self.width)
        mask = torch.zeros(len(captions), self.length, dtype=torch.bool)
        for i, caption in enumerate(captions):
            for j, word in enumerate(caption.split()[: self.length]):
                tokens[i, j] = torch.tensor(list(hashlib.sha256(word.encode()).digest()[: self.width])) / 256
                mask[i, j] = True
        return MaskedTokens(tokens, mask) if self.masked else tokens


def encode(cache: Path, masked: bool = True, seed: int = 0, encoder: Words | None = None) -> EncodedDataset:
    data = DataConfig(resolution=16, train_size=48, max_objects=1, scenery=False, sizes=False, seed=seed)
    return encode_dataset(build_dataset(data, "train"), Pixels(), encoder or Words(masked), cache)  # type: ignore[arg-type]
