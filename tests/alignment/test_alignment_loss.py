"""Test the alignment term: its value, its gradients, its projector's weights and its cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from aligned_runs import a_step, aligned
from torch import Tensor, nn

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.loss import NoAlignment, PatchAlignment, build_alignment
from microdit.alignment.patch_encoders import LITE0
from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import EDM
from microdit.model import DiT, PatchMask
from microdit.model.cost import network as cost
from microdit.pipeline import cost as budget
from microdit.pipeline.inputs import build_components
from microdit.training.feed.batches import draw_batch
from microdit.training.trainer import TrainingLoss, initial_state, optimizer_step
from microdit.training.validation import validate


def masked(config: Config, method: str, ratio: float) -> Config:
    masking = dataclasses.replace(config.model.masking, method=method, ratio=ratio)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, masking=masking))


def tokens_after(net: DiT, block: int, x: Tensor, t: Tensor, y: Tensor, plan: PatchMask | None) -> Tensor:
    """Return a block's output by running the network again, without hooks."""
    tokens = net.x_embedder(x) + net.pos_embed
    c, y = net.condition(t, y)
    tokens = net.mixer.project_out(net.masking.drop(net.mixer(tokens, c, y), plan))
    for layer in list(net.blocks)[:block]:
        tokens = layer(tokens, c, y)
    return tokens


@pytest.mark.parametrize(("method", "ratio"), [("none", 0.0), ("naive", 0.5), ("deferred", 0.75)])
@pytest.mark.parametrize("block", [1, 2])
def test_the_loss_follows_the_papers_equation(colors: Config, method: str, ratio: float, block: int):
    """Compute the term patch by patch: -lambda / N sum of cosines over the kept patches."""
    module, inputs, plan = a_step(masked(aligned(colors, block=block, weight=0.3), method, ratio))
    x, y, sigma, noise, target = inputs
    loss, readings = module(*inputs, plan)

    level = sigma.view(-1, 1, 1, 1)
    tokens = tokens_after(
        module.denoiser.net,
        block,
        (x + level * noise) / (level.square() + 0.25).sqrt(),
        sigma.log() / 4,
        y,
        plan,
    )
    first, second, third = (module.alignment.projector[i] for i in (0, 2, 4))
    cosines = []
    for image in range(len(x)):
        kept = range(16) if plan is None else plan.ids_keep[image].tolist()
        assert len(kept) == round(16 * (1 - ratio))
        for place, patch in enumerate(kept):
            h = nn.functional.silu(first.weight @ tokens[image, place] + first.bias)
            h = third.weight @ nn.functional.silu(second.weight @ h + second.bias) + third.bias
            wanted = target[image, patch].float()
            cosines.append(h @ wanted / (h.norm() * wanted.norm()))
    expected = torch.stack(cosines).mean()
    denoising = module.denoiser.loss(x, y, sigma, noise, plan).mean()
    torch.testing.assert_close(readings["train/alignment"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, denoising - 0.3 * expected, rtol=1e-5, atol=1e-6)
    assert readings["train/loss"] == denoising


def test_dropped_patches_do_not_count(colors: Config):
    module, inputs, plan = a_step(colors)
    assert plan is not None
    loss, _ = module(*inputs, plan)
    target = inputs[4]
    noise = torch.randn(target.shape, generator=generator(0, "other"))
    dropped = torch.where(plan.mask.unsqueeze(-1) == 1, noise, target)
    kept = torch.where(plan.mask.unsqueeze(-1) == 0, noise, target)
    assert torch.equal(module(*inputs[:4], dropped, plan)[0], loss)
    assert not torch.equal(module(*inputs[:4], kept, plan)[0], loss)


def test_gradients_reach_the_projector_and_the_blocks_up_to_the_aligned_one(colors: Config):
    """The head starts at zero, so at the first step the denoising loss moves the head alone."""
    module, inputs, plan = a_step(aligned(colors, block=1))
    module(*inputs, plan)[0].backward()
    grads = {name.split("denoiser.net.")[-1]: parameter.grad for name, parameter in module.named_parameters()}
    moved = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert {f"alignment.projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")} <= moved
    assert {"blocks.0.cross_attn.proj.weight", "x_embedder.proj.weight", "final_layer.linear.weight"} <= moved
    assert not [name for name in moved if name.startswith("blocks.1.")]


def test_passes_without_gradients_store_no_tokens(colors: Config):
    module, inputs, plan = a_step(colors)
    with torch.no_grad():
        module.denoiser.loss(*inputs[:4], plan)
    assert module.alignment._tokens is None
    module(*inputs, plan)
    assert module.alignment._tokens is None


def test_the_loss_traces_into_one_graph(colors: Config):
    module, inputs, plan = a_step(colors)
    loss, readings = module(*inputs, plan)
    traced = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(2):
        again, same = traced(*inputs, plan)
        torch.testing.assert_close((again, same), (loss, readings))
    again.backward()
    assert module.alignment.projector[0].weight.grad.any()


def test_the_validation_loss_is_the_denoising_loss_alone(colors: Config):
    val = build_components(colors).val
    net = initial_state(aligned(colors, encoder="none"), torch.device("cpu")).net
    module, inputs, plan = a_step(colors)
    module(*inputs, plan)
    assert validate(module.denoiser, val, colors) == validate(EDM(net, 0.5), val, colors)


def test_clipping_and_optimizer_include_the_projector(colors: Config):
    config = dataclasses.replace(colors, optimizer=dataclasses.replace(colors.optimizer, weight_decay=0.5))
    data, accelerator = build_components(config).train, Accelerator(cpu=True)
    state = initial_state(config, torch.device("cpu"))
    grouped = [p for group in state.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in state.parameters()}
    module, order = TrainingLoss(EDM(state.net, 0.5), state.alignment, config.training), BatchSampler(len(data), 8, 0)
    batch = draw_batch(config, 0, data, order, state.net)
    module(*batch.arguments())[0].backward()
    gradients = [p.grad.norm() for p in state.parameters() if p.grad is not None]
    state.optimizer.zero_grad()
    readings = optimizer_step(config, 1e-3, batch, module, state, accelerator)
    torch.testing.assert_close(readings["grad_norm"], torch.stack(gradients).norm())


def test_each_parameter_has_its_own_random_stream(colors: Config):
    one = build_alignment(colors.alignment, colors.model, 3).state_dict()
    same = build_alignment(colors.alignment, colors.model, 3).state_dict()
    other = build_alignment(colors.alignment, colors.model, 4).state_dict()
    wide = build_alignment(dataclasses.replace(colors.alignment, hidden=48), colors.model, 3)
    assert isinstance(wide, PatchAlignment)
    assert [tuple(wide.projector[i].weight.shape) for i in (0, 2, 4)] == [(48, 32), (48, 48), (6, 48)]
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) == name.endswith("bias")
    assert not torch.equal(one["projector.0.weight"], one["projector.2.weight"])
    bound = (6 / (32 + 32)) ** 0.5  # Xavier-uniform, as REPA's code has it
    assert 0.95 * bound < one["projector.0.weight"].abs().max() <= bound


def test_the_projector_counts_as_flops_and_not_as_parameters(colors: Config):
    plain = aligned(colors, encoder="none")
    assert isinstance(build_alignment(plain.alignment, plain.model, 0), NoAlignment)
    macs = 4 * (32 * 48 + 48 * 48 + 48 * 6)  # 4 of 16 patches are kept
    images = colors.training.steps * colors.training.batch_size
    added = budget.training_flops(aligned(colors, hidden=48)) - budget.training_flops(plain)
    assert added == 3 * 2 * macs * images
    assert budget.cost_facts(colors)["params"] == cost.parameters(colors.model)
    extra = budget.trained_parameters(aligned(colors, hidden=48)) - cost.parameters(colors.model)
    assert extra == 32 * 48 + 48 * 48 + 48 * 6 + 48 + 48 + 6


def test_default_block():
    assert [AlignmentConfig().block_of(depth) for depth in (1, 2, 4, 16, 28)] == [1, 1, 1, 5, 9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": 3}, ["'alignment.block' is 3", "1 to 2", "nearest is 2"]),
        ({"block": 0}, ["'alignment.block' is 0", "nearest is 1"]),
        ({"encoder": "efficientnet-lite"}, ["'alignment.encoder'", f"did you mean '{LITE0}'"]),
        ({"weight": -0.1}, ["'alignment.weight' is -0.1"]),
        ({"weight": float("nan")}, ["'alignment.weight' is nan"]),
        ({"hidden": 0}, ["'alignment.hidden' is 0"]),
    ],
)
def test_invalid_settings_are_rejected(colors: Config, change: dict, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        aligned(colors, **change)
    for word in words:
        assert word in str(caught.value)
