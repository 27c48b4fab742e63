"""Test initial weights against the released model's statistics in reference/tiny_init.json."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from torch import Tensor

from microdit.alignment.loss import PatchAlignment
from microdit.model import DiT, DiTConfig, MaskingConfig, preset
from microdit.model.checkpoint_import import NAMES
from microdit.model.config import DecoderConfig, FeedForwardConfig, MixerConfig
from microdit.model.init import initialize_module

# Parameter of MicroDiT_Tiny_2 -> (standard deviation, mean, largest absolute value), each the mean of two seeds.
RELEASED: dict[str, tuple[float, float, float]] = {
    name: tuple(values)
    for name, values in json.loads((Path(__file__).parent / "reference" / "tiny_init.json").read_text()).items()
}
ROUNDING = 1e-5  # of the file's numbers
SIGMAS = 5  # one parameter in a million deviates more; there are 288
SMALL = DiTConfig(
    input_size=8, width=64, depth=16, head_dim=16, caption_channels=12, mixer=MixerConfig(depth=2, width=32)
)


def released_name(ours: str) -> str:
    """Return the released name of one of our parameters."""
    for theirs, prefix in NAMES:
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    return ours


def check(name: str, weight: Tensor, released: tuple[float, float, float]) -> None:
    """Compare one parameter with the released statistics, within what chance allows for so many values.

    The deviation of n normal values has the relative standard error sqrt(1 / 2n), and their mean std x sqrt(1 / n).
    The file's two seeds add half of the variance. A uniform's deviation varies less.
    """
    std, mean, largest = released
    count = weight.numel()
    assert abs(weight.mean().item() - mean) <= SIGMAS * std * math.sqrt(1.5 / count) + ROUNDING, f"mean of {name}"
    if std == 0:
        assert weight.eq(mean).all(), name
        return
    assert abs(weight.std().item() - std) <= SIGMAS * std * math.sqrt(0.75 / count) + ROUNDING, f"deviation of {name}"
    # The largest of n normal values has a Gumbel tail of scale std / sqrt(2 ln n); that of a uniform is its bound.
    uniform = largest < 1.8 * std
    slack = 14 * largest / count if uniform else 14 * std / math.sqrt(2 * math.log(count))
    assert abs(weight.abs().max().item() - largest) <= slack + ROUNDING, f"largest value of {name}"


def test_initial_scales_are_the_released_ones() -> None:
    ours = {released_name(name): p for name, p in DiT(preset("MicroDiT_Tiny_2"), seed=0).named_parameters()}
    assert ours.keys() == RELEASED.keys()
    for name, weight in ours.items():
        check(name, weight.detach(), RELEASED[name])


def test_depth_scales_every_block_of_a_backbone_alike() -> None:
    """At another width, dense blocks and a GELU feed-forward have the scales of the released block."""
    swiglu = DiT(SMALL, seed=0)
    gelu = DiT(dataclasses.replace(SMALL, ffn=FeedForwardConfig("gelu")), seed=0)
    for i in range(SMALL.depth):
        for branch in ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"):
            name = f"blocks.{i}.{branch}.weight"
            check_deviation(name, swiglu, name)
        scaled = f"blocks.{i}.attn.proj.weight"
        for kind, net in ((("w2", "w3"), swiglu), (("w2",), gelu)):
            check_deviation(f"blocks.{i}.mlp.w1.weight", net, "blocks.0.mlp.w1.weight")
            for matrix in kind:
                check_deviation(f"blocks.{i}.mlp.{matrix}.weight", net, scaled)


@pytest.mark.parametrize(("method", "stack"), [("deferred", "mixer.blocks"), ("maskdit", "masking.blocks")])
def test_the_backbones_depth_scales_every_other_stack(method: str, stack: str) -> None:
    masking = MaskingConfig(method, 0.75, decoder=DecoderConfig(depth=2))
    net = DiT(dataclasses.replace(SMALL, masking=masking), seed=0)
    for i in range(2):
        for name in ("attn.proj", "cross_attn.proj", "mlp.w2", "mlp.w3"):
            check_deviation(f"{stack}.{i}.{name}.weight", net, f"patch_mixer.0.{name}.weight")
        check_deviation(f"{stack}.{i}.mlp.w1.weight", net, "patch_mixer.0.mlp.w1.weight")


def check_deviation(name: str, net: DiT, released: str) -> None:
    """Compare the standard deviation of one of our parameters with that of a released one."""
    weight, (std, _, _) = net.get_parameter(name), RELEASED[released]
    error = SIGMAS * std * math.sqrt(0.75 / weight.numel()) + ROUNDING
    assert abs(weight.std().item() - std) <= error, f"{name} against {released}"


@pytest.mark.parametrize("bias", [False, True])
def test_biases_are_zero_except_the_patch_embeddings(bias: bool) -> None:
    net = DiT(dataclasses.replace(SMALL, bias=bias), seed=0)
    biases = {name: p for name, p in net.named_parameters() if name.endswith("bias")}
    assert len(biases) > (100 if bias else 20)
    for name, parameter in biases.items():
        std, _, largest = RELEASED.get(released_name(name), (0.0, 0.0, 0.0))
        assert (parameter.abs().max() > 0) == (std > 0), name
        assert parameter.abs().max() <= largest * 1.01, name


@pytest.mark.parametrize("method", ["maskdit", "sprint"])
def test_mask_tokens_are_initialized_as_in_their_papers_code(method: str) -> None:
    """MaskDiT's code draws its mask token with the deviation of the embedders, 0.02."""
    wide = dataclasses.replace(SMALL, width=1024, depth=4, masking=MaskingConfig(method, 0.75))
    check_deviation("masking.mask_token", DiT(wide, seed=0), "y_embedder.y_proj.fc1.weight")


def test_projectors_of_alignment_are_xavier_like_every_other_linear() -> None:
    def xavier(inputs: int, outputs: int) -> float:
        return math.sqrt(2 / (inputs + outputs))

    std, _, _ = RELEASED["x_embedder.proj.weight"]
    assert xavier(16, 512) == pytest.approx(std, rel=0.01)  # the released deviation is Xavier's
    alignment = PatchAlignment(block=1, width=64, hidden=128, features=32, weight=0.5)
    initialize_module(alignment, 0, "alignment")
    for index, (inputs, outputs) in zip((0, 2, 4), ((64, 128), (128, 128), (128, 32)), strict=True):
        linear = alignment.projector[index]
        expected = xavier(inputs, outputs)
        assert abs(linear.weight.std() - expected) < SIGMAS * expected * math.sqrt(0.5 / linear.weight.numel())
        assert linear.bias.eq(0).all()
