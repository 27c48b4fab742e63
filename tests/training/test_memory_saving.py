"""Test activation checkpointing and bf16 residuals: gradients, dtypes, keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from changed_config import with_changes

from microdit.alignment.loss import build_alignment
from microdit.common.errors import ConfigError
from microdit.config.identity import trial_key
from microdit.config.schema import Config
from microdit.diffusion import EDM
from microdit.model import DiT
from microdit.model.conditioning import MaskedTokens
from microdit.model.layers.blocks import DiTBlock
from microdit.model.masking.registry import MASKING_METHODS
from microdit.training.memory import training_memory
from microdit.training.trainer import TrainingLoss

CHECKPOINTING = "training.activation_checkpointing"
BF16 = {"training.precision": "bf16"}
ALIGNED = {"alignment.encoder": "efficientnet-lite0", "alignment.block": 1, "alignment.weight": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    name: {"model.masking.method": name, "model.masking.ratio": 0.0 if name == "none" else 0.5}
    for name in MASKING_METHODS
}
CASES = METHODS | {
    "experts": {"model.experts.every_n": 1},
    "alignment": ALIGNED,
    "narrow mixer": {
        "model.mixer": {"depth": 2, "width": 16, "head_dim": 8, "attn_ratio": 1.0, "ffn_ratio": 2.0},
    },
}


def gradients(config: Config, half: bool = False, compiled: bool = False) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Return the gradients of a step on random data with padded captions, and each run of a block.

    A run is (whether autograd is on, the dtype of the tokens).
    """
    net = DiT(config.model, seed=0)
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():  # gates that are zero would hide the blocks
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    alignment = build_alignment(config.alignment, config.model, 0)
    module: torch.nn.Module = TrainingLoss(EDM(net, 0.5), alignment, config.training)
    runs: list[Any] = []
    if not compiled:
        for block in net.modules():
            if isinstance(block, DiTBlock):
                block.norm1.register_forward_pre_hook(lambda _, inputs: runs.append(inputs[0].dtype))
    model, batch = config.model, 4
    x = torch.randn((batch, model.in_channels, model.input_size, model.input_size), generator=draw)
    tokens = torch.randn((batch, 5, model.caption_channels), generator=draw)
    mask = torch.arange(5).expand(batch, -1) < torch.tensor([[5], [3], [2], [5]])
    target = torch.randn((batch, model.patches, alignment.features), generator=draw)
    plan = net.mask_plan(batch, draw)
    if compiled:
        module = torch.compile(module)  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss, _ = module(x, MaskedTokens(tokens, mask), torch.ones(batch), x.flip(0), target, plan)
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}, runs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("half", [False, True])
def test_checkpointed_gradients_are_equal_and_blocks_run_twice(smoke_config: Config, case: str, half: bool):
    residual = {**BF16, "training.residual": "bf16"} if half else {}
    config = with_changes(smoke_config, CASES[case] | residual)
    plain, once = gradients(config, half)
    saved, twice = gradients(with_changes(config, {CHECKPOINTING: True}), half)
    assert saved.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=0, atol=0, msg=name)
    assert len(twice) == 2 * len(once)


@pytest.mark.slow
def test_checkpointing_works_in_a_compiled_step(smoke_config: Config):
    config = with_changes(smoke_config, {"model.experts.every_n": 1} | ALIGNED)
    plain, _ = gradients(config)
    saved, _ = gradients(with_changes(config, {CHECKPOINTING: True}), compiled=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[f"_orig_mod.{name}"], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_bf16_residuals_reach_every_block_and_keep_the_gradients(smoke_config: Config, case: str):
    config = with_changes(smoke_config, CASES[case] | BF16)
    exact, _ = gradients(config)
    wide, of_wide = gradients(config, half=True)
    narrow, of_narrow = gradients(with_changes(config, {"training.residual": "bf16"}), half=True)
    assert set(of_narrow) == {torch.bfloat16}
    if case != "narrow mixer":  # its linear maps make bf16 tokens in any case
        assert torch.float32 in of_wide

    def error(found: dict[str, torch.Tensor]) -> float:
        squares = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
        return (squares / sum(float(value.square().sum()) for value in exact.values())) ** 0.5

    assert {value.dtype for value in narrow.values()} == {torch.float32}
    assert 0 < error(narrow) < max(0.03, 3 * error(wide))


def test_bf16_residuals_do_not_change_a_pass_in_full_precision(smoke_config: Config):
    plain, _ = gradients(smoke_config)
    narrow, _ = gradients(with_changes(smoke_config, BF16 | {"training.residual": "bf16"}))
    for name, gradient in plain.items():
        assert torch.equal(narrow[name], gradient), name


def test_only_bf16_residuals_change_the_key(smoke_config: Config):
    half = with_changes(smoke_config, BF16)
    assert trial_key(with_changes(smoke_config, {CHECKPOINTING: True})) == trial_key(smoke_config)
    assert trial_key(with_changes(half, {"training.residual": "fp32"})) == trial_key(half)
    assert trial_key(with_changes(half, {"training.residual": "bf16"})) != trial_key(half)


def test_bf16_residuals_need_bf16(smoke_config: Config):
    with pytest.raises(ConfigError, match=r"'training.residual' is bf16, so 'training.precision' must be bf16"):
        with_changes(smoke_config, {"training.residual": "bf16"})


@pytest.mark.parametrize("case", CASES)
def test_both_settings_need_less_memory(smoke_config: Config, case: str):
    half = with_changes(smoke_config, CASES[case] | BF16)
    narrow, saved = (
        with_changes(half, {key: value}) for key, value in (("training.residual", "bf16"), (CHECKPOINTING, True))
    )
    assert training_memory(narrow).per_image < training_memory(half).per_image
    assert training_memory(saved).per_image < training_memory(half).per_image
    assert training_memory(saved).state == training_memory(half).state
