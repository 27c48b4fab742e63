"""Test that samplers draw the same latents with and without cached captions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microdit.common.rng import generator
from microdit.diffusion import EDM, GuidanceInterval, SamplerConfig, guided, sample
from microdit.model import DiT, DiTConfig, MaskingConfig
from microdit.model.conditioning import CachedCaptions, MaskedTokens, map_tokens, null_captions, unpack
from microdit.model.config import DecoderConfig, ExpertsConfig, MixerConfig, RouteConfig
from microdit.model.layers.attention import CrossAttention
from microdit.model.masking.registry import MASKING_METHODS

WIDTH, TOKENS, BATCH = 12, 6, 3
BASE = DiTConfig(input_size=8, width=32, depth=3, head_dim=8, caption_channels=WIDTH, mixer=MixerConfig(2))
NARROW = DecoderConfig(depth=2, width=16, head_dim=8)
ROUTE = RouteConfig(1, 1, path_drop=0.5)
NETWORKS: dict[str, dict[str, Any]] = {
    "none": {"masking": MaskingConfig("none", 0.0)},
    "naive": {"masking": MaskingConfig("naive")},
    "deferred": {"masking": MaskingConfig("deferred")},
    "deferred, narrow mixer": {"mixer": MixerConfig(2, width=16, head_dim=8)},
    "deferred, no mixer": {"mixer": MixerConfig(0)},
    "maskdit": {"masking": MaskingConfig("maskdit")},
    "maskdit, narrow decoder": {"masking": MaskingConfig("maskdit", decoder=NARROW)},
    "routing": {"masking": MaskingConfig("routing", route=RouteConfig(1, 1))},
    "sprint": {"masking": MaskingConfig("sprint", route=ROUTE)},
    "experts": {"experts": ExpertsConfig(num=4, every_n=1)},
    "biases, no normalized queries": {"bias": True, "qk_norm": False},
}
GUIDANCE: dict[str, dict[str, Any]] = {
    "none": {"guidance": 1.0},
    "everywhere": {"guidance": 2.0},
    "interval": {"guidance": 2.0, "guidance_interval": GuidanceInterval(0.1, 5.0)},
}
# Noise levels from which a random network draws latents of about unit deviation. From 80 in 4 steps it amplifies its
# input's last bit to more than 1e-5.
SAMPLER = SamplerConfig(steps=4, sigma_min=0.02, sigma_max=10.0)


def build(name: str) -> DiT:
    """Return a small network with all weights random, so that every part affects the output."""
    net = DiT(dataclasses.replace(BASE, **NETWORKS[name]), seed=None)
    for key, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator(0, key))
        parameter.data = 1 + 0.1 * noise if "norm" in key else 0.1 * noise
    return net.eval()


NOISE = torch.randn(BATCH, 4, 8, 8, generator=generator(0, "noise"))
PLAIN = torch.randn(BATCH, TOKENS, WIDTH, generator=generator(0, "captions"))
LENGTHS = torch.tensor([[2], [TOKENS], [0]])  # the last caption is all padding
PADDED = MaskedTokens(PLAIN, torch.arange(TOKENS) < LENGTHS)


def draw(net: DiT, y: Tensor | MaskedTokens | CachedCaptions, config: SamplerConfig) -> Tensor:
    model = guided(EDM(net, 0.5), y, config.guidance, config.guidance_interval, config.guidance_by)
    return sample(model, NOISE, config)


@pytest.mark.parametrize("captions", [PLAIN, PADDED], ids=["plain", "padded"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("network", NETWORKS)
def test_latents_are_those_of_uncached_captions(network: str, guidance: str, captions: Tensor | MaskedTokens):
    net, config = build(network), dataclasses.replace(SAMPLER, **GUIDANCE[guidance])
    expected = draw(net, captions, config)
    torch.testing.assert_close(draw(net, CachedCaptions(captions), config), expected, rtol=1e-5, atol=1e-5)
    other = PLAIN.flip(0) if isinstance(captions, Tensor) else MaskedTokens(PLAIN.flip(0), captions.mask)
    assert (draw(net, CachedCaptions(other), config) - expected).abs().max() > 1e-3  # captions do affect them


@pytest.mark.parametrize("captions", [PLAIN, PADDED], ids=["plain", "padded"])
@pytest.mark.parametrize("interval", [GuidanceInterval(), GuidanceInterval(0.1, 5.0)], ids=["everywhere", "interval"])
def test_path_drop_guidance_draws_the_same_latents(captions: Tensor | MaskedTokens, interval: GuidanceInterval):
    net = build("sprint")
    config = dataclasses.replace(SAMPLER, guidance=2.0, guidance_by="path_drop", guidance_interval=interval)
    expected = draw(net, captions, config)
    torch.testing.assert_close(draw(net, CachedCaptions(captions), config), expected, rtol=1e-5, atol=1e-5)


def test_every_masking_method_is_tried():
    tried = {changes.get("masking", BASE.masking).method for changes in NETWORKS.values()}
    assert tried == MASKING_METHODS.keys()


def test_captions_are_read_once_in_a_trajectory():
    """Layers that read only captions run at the first noise level; those of image tokens at each of 7."""
    net, calls = build("deferred, narrow mixer"), dict[str, int]()

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count(name))
    draw(net, CachedCaptions(PLAIN), dataclasses.replace(SAMPLER, guidance=2.0))
    of_captions = [name for name in calls if name.startswith(("y_embedder", "pooled_embedder", "caption_block"))]
    of_captions += [name for name in calls if name.endswith("kv_linear") or name.startswith("mixer.map_caption")]
    assert {calls[name] for name in of_captions} == {2}  # once for the captions, once for the null caption
    queries = [name for name in calls if name.endswith("cross_attn.q_linear")]
    assert len(queries) == 5
    assert {calls[name] for name in queries} == {7}  # none for the null caption
    assert {calls[f"blocks.{i}.attn.qkv"] for i in range(3)} == {14}


@torch.no_grad()
def test_attention_to_equal_tokens_is_that_of_one():
    """Any weights that sum to 1 give the common value, so no image token matters."""
    attention = CrossAttention(32, 8, bias=True, qk_norm=True, eps=1e-6)
    token = torch.randn(BATCH, 1, 32, generator=generator(0, "token"))
    x = torch.randn(BATCH, 5, 32, generator=generator(0, "image"))
    expected = attention(x, token.repeat(1, TOKENS, 1))
    found = attention(x, CachedCaptions(token.expand(-1, TOKENS, -1), alike=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cached_captions_are_otherwise_captions():
    cached = CachedCaptions(PADDED)
    assert len(cached) == BATCH
    assert unpack(cached) == unpack(PADDED)
    for changed, expected in (
        (cached[:2], PADDED[:2]),
        (cached.to("cpu"), PADDED),
        (cached.repeat_interleave(2), PADDED.repeat_interleave(2)),
        (map_tokens(lambda tokens: 2 * tokens, cached), MaskedTokens(2 * PLAIN, PADDED.mask)),
    ):
        assert isinstance(changed, MaskedTokens)
        assert torch.equal(changed.tokens, expected.tokens)
        assert torch.equal(changed.mask, expected.mask)
    tokens, mask = unpack(null_captions(cached))
    assert mask is None
    assert torch.equal(tokens, torch.zeros_like(PLAIN))
