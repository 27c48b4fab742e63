"""Test encoded captions: masks are kept if the text encoder has them, and shared captions agree on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from word_encoder import Words, encode

from microdit.common.errors import ConfigError
from microdit.config.identity import identity_mapping, trial_key
from microdit.config.schema import Config
from microdit.data.latents.caption_store import CaptionStore
from microdit.data.latents.shards import open_shard
from microdit.data.latents.training_data import BatchSampler
from microdit.encoders.autoencoder import Pixels
from microdit.encoders.config import TextConfig
from microdit.model import DiT
from microdit.model.conditioning import Captions, MaskedTokens, unpack
from microdit.training.feed.batches import draw_batch


def test_batches_carry_each_captions_own_mask(tmp_path: Path):
    for _ in range(2):  # written, then opened
        data = encode(tmp_path)
        rows = np.array([5, 0, 5, 17])
        found = data.batch(rows)[1]
        assert isinstance(found, MaskedTokens)
        expected, mask = unpack(Words(True).encode([data.caption(int(i)) for i in rows]))
        assert mask is not None
        assert torch.equal(found.mask, mask)
        torch.testing.assert_close(found.tokens, expected, atol=1e-3, rtol=1e-3)
    assert len(set(found.mask.sum(1).tolist())) > 1


def test_no_mask_is_stored_without_one(tmp_path: Path):
    data = encode(tmp_path, masked=False)
    assert isinstance(data.batch(np.arange(3))[1], torch.Tensor)
    assert all("mask" not in open_shard(path).tensors for path in tmp_path.rglob("*.safetensors"))


def test_datasets_that_share_captions_share_their_features(tmp_path: Path):
    first, second = encode(tmp_path, seed=0), encode(tmp_path, seed=1)
    mine, others = ([data.caption(i) for i in range(len(data))] for data in (first, second))
    shared = set(mine) & set(others)
    assert shared
    assert mine != others
    assert len(CaptionStore(next(tmp_path.glob("captions-*/")))) == len(set(mine) | set(others))
    for caption in shared:
        found = [data.batch(np.array([at.index(caption)]))[1] for data, at in ((first, mine), (second, others))]
        assert all(isinstance(one, MaskedTokens) for one in found)
        assert torch.equal(found[0].tokens, found[1].tokens)
        assert torch.equal(found[0].mask, found[1].mask)


def test_broken_text_weights_fail_before_images_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Broken(Words):
        def encode(self, captions: Sequence[str]) -> Captions:
            raise ConfigError("no weights")

    def never(*_: object) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(Pixels, "encode", never)
    with pytest.raises(ConfigError, match="no weights"):
        encode(tmp_path, encoder=Broken(True))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_caption_dropout_gives_the_null_caption(tmp_path: Path, smoke_config: Config):
    training = dataclasses.replace(smoke_config.training, caption_dropout=0.5, batch_size=16)
    config = dataclasses.replace(smoke_config, training=training)
    data, net = encode(tmp_path), DiT(smoke_config.model)
    kept = draw_batch(
        dataclasses.replace(config, training=dataclasses.replace(training, caption_dropout=0.0)),
        0,
        data,
        BatchSampler(len(data), 16, 0),
        net,
    ).y
    y = draw_batch(config, 0, data, BatchSampler(len(data), 16, 0), net).y
    assert isinstance(y, MaskedTokens)
    assert isinstance(kept, MaskedTokens)
    null = y.tokens.abs().sum((1, 2)) == 0
    assert 0 < null.sum() < 16
    assert y.mask[null].all()
    assert torch.equal(y.mask[~null], kept.mask[~null])
    assert torch.equal(y.tokens[~null], kept.tokens[~null])


def test_a_length_that_is_not_set_leaves_the_key_as_it_was(smoke_config: Config):
    assert "length" not in identity_mapping(smoke_config)["text"]
    longer = dataclasses.replace(smoke_config, text=TextConfig(length=32))
    assert identity_mapping(longer)["text"]["length"] == 32
    assert trial_key(longer) != trial_key(smoke_config)
