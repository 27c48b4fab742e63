"""Test captions of different lengths: padding is ignored, and padding alone is the null caption."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import randomize
from torch import Tensor

from microdit.common.rng import generator
from microdit.diffusion import EDM, guided
from microdit.model import DiT, DiTConfig, MaskingConfig
from microdit.model.conditioning import MaskedTokens, append_null_captions, drop_captions, round_to_half
from microdit.model.config import DecoderConfig, MixerConfig, RouteConfig

LENGTHS = (3, 77, 9)
BASE = DiTConfig(input_size=8, width=64, depth=3, head_dim=16, caption_channels=12, mixer=MixerConfig(2, width=32))
MASKINGS = {
    "deferred": MaskingConfig("deferred", 0.75),
    "maskdit": MaskingConfig("maskdit", 0.5, decoder=DecoderConfig(depth=1, width=32)),
    "sprint": MaskingConfig("sprint", 0.5, route=RouteConfig(1, 1)),
}


def build(method: str = "deferred") -> DiT:
    """Return a small network with all weights random, so that every part affects the output."""
    return randomize(DiT(dataclasses.replace(BASE, masking=MASKINGS[method]), seed=None)).eval()


def images() -> tuple[Tensor, Tensor]:
    draw = generator(0, "images")
    return torch.randn(len(LENGTHS), 4, 8, 8, generator=draw), torch.randn(len(LENGTHS), generator=draw)


def captions(padding: float = 0.0) -> MaskedTokens:
    """Return captions of LENGTHS tokens in 77 places, `padding` in the others."""
    tokens = torch.randn(len(LENGTHS), 77, 12, generator=generator(0, "captions"))
    mask = torch.arange(77) < torch.tensor(LENGTHS).view(-1, 1)
    return MaskedTokens(tokens.masked_fill(~mask.unsqueeze(-1), padding), mask)


@pytest.mark.parametrize("method", MASKINGS)
@torch.no_grad()
def test_padding_does_not_change_the_output(method: str):
    net, (x, t), y = build(method), images(), captions()
    plan = net.mask_plan(len(x), generator(0, "mask"))
    assert plan is not None
    for own_plan in (None, plan):
        padded = net(x, t, y, own_plan)
        for i, length in enumerate(LENGTHS):
            rows = slice(i, i + 1)
            alone = net(x[rows], t[rows], y.tokens[rows, :length], None if own_plan is None else own_plan[rows])
            torch.testing.assert_close(padded[rows], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", MASKINGS)
@torch.no_grad()
def test_only_tokens_that_count_are_seen(method: str):
    net, (x, t), y = build(method), images(), captions()
    out = net(x, t, y)
    assert torch.equal(net(x, t, captions(padding=7.0)), out)
    tokens = y.tokens.clone()
    tokens[0, 2] += 1  # its last token
    changed = net(x, t, MaskedTokens(tokens, y.mask))
    assert not torch.allclose(changed[0], out[0], atol=1e-3)
    assert torch.equal(changed[1:], out[1:])
    assert not torch.allclose(net(x, t, y.tokens)[0], out[0], atol=1e-3)  # without the mask, padding affects the output


@torch.no_grad()
def test_a_mask_of_all_tokens_equals_no_mask():
    net, (x, t), y = build(), images(), captions().tokens
    everything = MaskedTokens(y, torch.ones(y.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(net(x, t, everything), net(x, t, y), atol=1e-6, rtol=1e-5)


def test_a_caption_of_padding_alone_is_the_null_caption():
    net, (x, t), y = build(), images(), captions(padding=5.0)
    mask = y.mask.clone()
    mask[0] = False
    out = net(x, t, MaskedTokens(y.tokens, mask))
    out.square().mean().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())
    null = net(x[:1], t[:1], torch.zeros(1, 77, 12))
    torch.testing.assert_close(out[:1], null, atol=1e-5, rtol=1e-5)


def test_null_captions_are_zeros_without_padding():
    y, rows = captions(), torch.tensor([True, False, False])
    found = drop_captions(y, rows)
    assert isinstance(found, MaskedTokens)
    assert found.tokens[0].count_nonzero() == 0
    assert found.mask.sum(1).tolist() == [77, 77, 9]
    assert torch.equal(found.tokens[1:], y.tokens[1:])
    both = append_null_captions(y)
    assert isinstance(both, MaskedTokens)
    assert both.mask.sum(1).tolist() == [*LENGTHS, 77, 77, 77]
    plain = y.tokens
    assert torch.equal(drop_captions(plain, rows), torch.where(rows.view(-1, 1, 1), torch.zeros(()), plain))
    assert torch.equal(append_null_captions(plain), torch.cat([plain, torch.zeros_like(plain)]))


@torch.no_grad()
def test_guidance_of_padded_captions_uses_the_null_caption():
    denoiser, (x, _), y = EDM(build(), 0.5), images(), captions()
    sigma = torch.full((len(x),), 1.3)
    conditional, null = denoiser(x, sigma, y), denoiser(x, sigma, torch.zeros_like(y.tokens))
    expected = null + 3 * (conditional - null)
    torch.testing.assert_close(guided(denoiser, y, 3.0)(x, sigma), expected, atol=1e-4, rtol=1e-4)


def test_masked_tokens_are_sliced_moved_and_repeated_with_their_masks():
    tokens = torch.arange(12.0, dtype=torch.float32).view(3, 2, 2)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    both = MaskedTokens(tokens, mask)
    assert len(both) == 3
    cut = both[1:]
    assert torch.equal(cut.tokens, tokens[1:])
    assert torch.equal(cut.mask, mask[1:])
    twice = both.repeat_interleave(2)
    assert torch.equal(twice.tokens, tokens[[0, 0, 1, 1, 2, 2]])
    assert torch.equal(twice.mask, mask[[0, 0, 1, 1, 2, 2]])
    moved = both.to("meta", non_blocking=True)
    assert (moved.tokens.device.type, moved.mask.device.type) == ("meta", "meta")
    assert (moved.tokens.dtype, moved.mask.dtype) == (torch.float32, torch.bool)


def test_stored_captions_are_rounded_to_half_precision():
    tokens = torch.tensor([[[0.1, 70.01]]])
    mask = torch.tensor([[True]])
    stored = round_to_half(MaskedTokens(tokens, mask))
    assert isinstance(stored, MaskedTokens)
    assert stored.tokens.dtype == torch.float32
    assert torch.equal(stored.tokens, torch.tensor([[[0.0999755859375, 70.0]]]))  # the nearest half floats
    assert torch.equal(stored.mask, mask)
    assert torch.equal(round_to_half(tokens), stored.tokens)
