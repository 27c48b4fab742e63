"""Test all methods on a fake CUDA device, in training, validation and sampling: no tensor is left on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_config import with_changes
from fake_cuda import CUDA, FakeGenerator, Reads, accelerator_on_cuda, backward, fake_cuda, load_outside, made_outside
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from microdit.alignment import patch_encoders
from microdit.alignment.feature_cache import PatchTargets
from microdit.alignment.patch_encoders import Lite0Patches
from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.data.latents.caption_store import CaptionFeatures
from microdit.data.latents.training_data import EncodedDataset
from microdit.diffusion import EDM, samplers
from microdit.encoders import autoencoder as autoencoders
from microdit.encoders.autoencoder import Pixels, build_autoencoder
from microdit.encoders.text import build_text_encoder
from microdit.model import DiT
from microdit.model.conditioning import Captions, unpack, with_mask
from microdit.model.masking.registry import MASKING_METHODS
from microdit.pipeline.generate import generate
from microdit.pipeline.inputs import RunInputs, build_components
from microdit.pipeline.prompts import shown_prompts
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run_identity
from microdit.training import trainer
from microdit.training.feed import batches
from microdit.training.validation import validate

Changes = dict[str, Any]

MASKING = "model.masking."
METHODS: dict[str, Changes] = {
    "none": {MASKING + "method": "none", MASKING + "ratio": 0.0},
    "naive in blocks": {MASKING + "method": "naive", MASKING + "block_size": 2},
    "deferred": {MASKING + "method": "deferred"},
    "deferred in blocks, narrow mixer": {
        MASKING + "block_size": 2,
        "model.mixer": {"depth": 2, "width": 16, "head_dim": 8, "attn_ratio": 1.0, "ffn_ratio": 2.0},
    },
    "deferred, no mixer": {"model.mixer.depth": 0},
    "maskdit": {MASKING + "method": "maskdit"},
    "maskdit in blocks, narrow decoder": {
        MASKING + "method": "maskdit",
        MASKING + "block_size": 2,
        MASKING + "decoder": {"depth": 2, "width": 16, "head_dim": 8, "ffn_ratio": 2.0},
    },
    "maskdit, no decoder blocks, no reconstruction": {
        MASKING + "method": "maskdit",
        MASKING + "decoder.depth": 0,
        MASKING + "reconstruction": 0.0,
    },
    "routing in blocks": {MASKING + "method": "routing", MASKING + "block_size": 2},
    "sprint": {MASKING + "method": "sprint"},
    "sprint, paths dropped, no mask": {
        MASKING + "method": "sprint",
        MASKING + "route.path_drop": 0.5,
        MASKING + "ratio": 0.0,
    },
}
PLAIN: Changes = {"training.unmasked_tail": 0.5}
LOADED: Changes = {  # what most easily leaves a tensor behind, all at once
    "training.unmasked_tail": 0.5,
    "training.accumulation": 2,
    "training.precision": "bf16",
    "optimizer.type": "muon",
    "model.experts.every_n": 1,
    "alignment.encoder": "efficientnet-lite0",
    "model.attn_width": {"schedule": "layerwise", "start": 0.5, "end": 1.0, "multiple_of": None},
    "model.ffn_width": {"schedule": "layerwise", "start": 1.0, "end": 4.0, "multiple_of": None},
    "sampler.guidance": 2.0,
}
PATHS = {MASKING + "method": "sprint", MASKING + "route.path_drop": 0.5, "sampler.guidance_by": "path_drop"}
INTERVAL = {
    "sampler.steps": 3,
    "sampler.guidance": 2.0,
    "sampler.guidance_interval": {"sigma_low": 0.1, "sigma_high": 10.0},
}
OPTIONS: dict[str, Changes] = {
    "plain": {},
    "muon": {"optimizer.type": "muon", "optimizer.muon.nesterov": False},
    "accumulation": {"training.accumulation": 4},
    "bf16": {"training.precision": "bf16"},
    "experts": {"model.experts.every_n": 1},
    "alignment, last block": {"alignment.encoder": "efficientnet-lite0", "alignment.block": 2, "alignment.hidden": 8},
    "switches of the network": {"model.bias": True, "model.qk_norm": False, "model.ffn.type": "gelu"},
    "switches of the update": {
        "training.ema.decay": 0.0,
        "training.clip": 0.0,
        "training.caption_dropout": 1.0,
        "optimizer.no_decay": ["embedders", "norms", "biases"],
        "schedule.type": "constant",
        "schedule.warmup_steps": 1,
    },
    "late average, captions kept": {"training.ema.start_step": -1, "training.caption_dropout": 0.0},
    "validated and sampled on the way": {"training.val_every": 1, "training.sample_every": 1},
    "pixels": {"autoencoder.path": "pixels", "model.in_channels": 3, "model.input_size": 32, "model.patch_size": 4},
    "euler": {"sampler.type": "euler", "sampler.steps": 2},
    "heun, churn": {
        "sampler.steps": 2,
        "sampler.churn": {"amount": 20.0, "sigma_min": 0.0, "sigma_max": 1e9, "noise": 1.0},
    },
    "drawn on the device": {"training.draws": "device"},
    "drawn on the device, paths dropped": {**PATHS, "training.draws": "device", "sampler.guidance": 2.0},
    "guidance interval": INTERVAL,
    "path-drop guidance": {**PATHS, "sampler.guidance": 2.0},
    "path-drop guidance, interval": {**PATHS, **INTERVAL},
}
CASES = {
    **{name: LOADED | changes for name, changes in METHODS.items()},
    **{name: PLAIN | changes for name, changes in OPTIONS.items()},
}
LONG = {f"{name}, plain": PLAIN | changes for name, changes in METHODS.items()}  # each alone, in full precision
# Training steps (draw_batch, BatchFeed, optimizer_step, AveragedWeights.update, StepMetrics.add), sampling steps and
# the networks that encode must not wait for the device.
WAITS = {  # where a run reads a value: at each log line and checkpoint, at the start, and once per batch of samples
    "training.metrics.StepMetrics.check",
    "training.metrics.StepMetrics.read",
    "training.trainer._check_same_step",
    "common.finite.require_finite",
}
COPIES = {  # where it waits for a copy from or to the device
    "training.trainer.initial_state",
    "training.trainer._check_same_step",
    "training.metrics.StepMetrics.__init__",
    "training.validation.validate",
    "pipeline.generate.generate",
}
DECODER_COPIES = {f"encoders.autoencoder.KLAutoencoder.{method}" for method in ("__init__", "_per_channel")}


def prepared(config: Config) -> RunInputs:
    """Return real data; the features to align with are random, since encoding takes seconds."""
    plain = replace(config, alignment=replace(config.alignment, encoder="none"))
    components = build_components(plain)
    if config.alignment.encoder == "none":
        return components
    features = np.ones((len(components.train), config.model.patches, 320), np.float16)
    return replace(components, train=replace(components.train, targets=PatchTargets(features, "made up")))


def trained_and_sampled(
    config: Config,
    components: RunInputs,
    patch: pytest.MonkeyPatch,
    decodes: bool = False,
) -> Reads:
    """Train, validate and sample, then return where the program waited for the device.

    Latents are decoded as pixels, which is quick, unless `decodes`.
    """
    accelerator = accelerator_on_cuda(config, patch)
    patch.setattr(trainer, "DiT", made_outside(DiT))
    patch.setattr(trainer, "build_alignment", made_outside(trainer.build_alignment))
    patch.setattr(trainer, "save_checkpoint", lambda *arguments: None)
    patch.setattr(autoencoders, "_load", made_outside(autoencoders._load))
    patch.setattr(samplers, "sigma_steps", made_outside(samplers.sigma_steps))  # it checks values
    if config.training.draws == "device":
        patch.setattr(batches, "generator", lambda *stream: FakeGenerator() if len(stream) == 4 else generator(*stream))
    seen: list[int] = []

    def draw(step: int, net: DiT) -> None:
        shown = shown_prompts(components.val, 2)
        pictures = generate(
            EDM(net, 0.5).eval(), decoder, shown.features, config.sampler, 0, precision=config.training.precision
        )
        side = config.model.input_size * decoder.downsampling
        assert pictures.shape[:3] == (2, side, side)
        seen.append(step)

    with fake_cuda() as reads:
        decoder = build_autoencoder(config.autoencoder, accelerator.device) if decodes else Pixels()
        state = trainer.train(
            config, components.train, components.val, run_identity(config, components), NullLogger(), accelerator, draw
        )
        assert {p.device for p in state.parameters()} == {CUDA}
        assert {p.device for p in state.averaged.parameters()} == {CUDA}
        for kept in state.optimizer.state.values():
            assert {value.device for value in kept.values() if torch.is_tensor(value) and value.ndim} <= {CUDA}
        validate(EDM(state.averaged, 0.5).eval(), components.val, config)
        draw(config.training.steps, state.averaged)
    assert seen == ([0, 1, 2] if config.training.sample_every else [2])
    return reads


@pytest.fixture
def small(smoke_config: Config, tmp_path: Path) -> Config:
    changes = {"output_dir": str(tmp_path), "training.steps": 2, "sampler.steps": 1, "training.sample_every": 0}
    return with_changes(smoke_config, changes)


def run_case(small: Config, changes: Changes, patch: pytest.MonkeyPatch, decodes: bool = False) -> None:
    config = with_changes(small, changes)
    reads = trained_and_sampled(config, prepared(config), patch, decodes)
    assert reads.of_device == WAITS
    assert reads.copies == COPIES | (DECODER_COPIES if decodes else set())


@pytest.mark.parametrize("case", CASES)
def test_it_runs_on_the_device(case: str, small: Config, monkeypatch: pytest.MonkeyPatch):
    run_case(small, CASES[case], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG)
def test_methods_run_alone_in_full_precision(case: str, small: Config, monkeypatch: pytest.MonkeyPatch):
    run_case(small, LONG[case], monkeypatch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_validated_and_sampled_in_its_own_precision(
    precision: str, small: Config, monkeypatch: pytest.MonkeyPatch
):
    forward = DiT.forward
    seen: list[bool] = []

    def watched(self: DiT, *arguments: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            seen.append(torch.is_autocast_enabled("cuda"))
        return forward(self, *arguments)

    monkeypatch.setattr(DiT, "forward", watched)
    changes = {"training.precision": precision, "sampler.type": "euler", "sampler.guidance": 1.0}
    run_case(small, changes, monkeypatch)
    validated, sampled = math.ceil(small.training.val_images / 64), 1
    assert seen == [precision == "bf16"] * (validated + sampled)


def test_latents_are_encoded_and_decoded_on_the_device(small: Config, monkeypatch: pytest.MonkeyPatch):
    run_case(small, {}, monkeypatch, decodes=True)
    with fake_cuda() as reads:
        autoencoder = build_autoencoder(small.autoencoder, CUDA)
        latents = autoencoder.encode(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert (latents.device, latents.shape, reads.of_device) == (CUDA, (2, 4, 8, 8), set())


@dataclass(frozen=True)
class PaddedFeatures:
    """Encode captions so that only the first token counts."""

    tokens: CaptionFeatures

    def take(self, rows: np.ndarray) -> Captions:
        tokens, _ = unpack(self.tokens.take(rows))
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        mask[:, 0] = True
        return with_mask(tokens, mask)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_padded_captions_run_on_the_device(guidance: float, small: Config, monkeypatch: pytest.MonkeyPatch):
    config = with_changes(small, LOADED | {"sampler.guidance": guidance})
    found = prepared(config)
    padded = {split: data.with_features(PaddedFeatures(data.features)) for split, data in splits(found).items()}
    assert trained_and_sampled(config, replace(found, **padded), monkeypatch).of_device == WAITS


def splits(components: RunInputs) -> dict[str, EncodedDataset]:
    return {"train": components.train, "val": components.val}


@pytest.mark.parametrize("side", [4, 16])
def test_features_to_align_with_are_encoded_on_the_device(side: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patch_encoders, "build_lite0", made_outside(patch_encoders.build_lite0))
    monkeypatch.setattr(patch_encoders, "fold_batch_norm", made_outside(patch_encoders.fold_batch_norm))
    with fake_cuda() as reads:
        features = Lite0Patches(side, CUDA).encode(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert (features.device, features.shape[:2], reads.of_device) == (CUDA, (2, side**2), set())


def test_captions_are_encoded_on_the_device(small: Config):
    encoder = build_text_encoder(small.text, CUDA)
    load_outside(encoder)
    with fake_cuda() as reads:
        tokens, _ = unpack(encoder.encode(["a red ball", "a cat"]))
    assert (tokens.device, reads.of_device) == (CUDA, set())


def test_every_method_is_covered():
    tried = {changes.get(MASKING + "method", "deferred") for changes in METHODS.values()}
    assert tried == MASKING_METHODS.keys()


# The harness itself: it must see the mistakes that a GPU would show.


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.zeros(3),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: x.gather(0, torch.zeros(3, dtype=torch.int64)),
        lambda x: nn.Linear(3, 3)(x),
        lambda x: x.numpy(),
    ],
)
def test_a_tensor_left_on_the_cpu_is_detected(mistake: Callable[[torch.Tensor], Any]):
    with fake_cuda():
        x = torch.ones(3).to("cuda")
        with pytest.raises((RuntimeError, TypeError), match="device"):
            mistake(x)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, torch.zeros(3).to("cuda")),
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.zeros(3, device="cuda").repeat_interleave(x.long()),
    ],
)
def test_a_value_read_from_the_device_is_detected(wait: Callable[[torch.Tensor], Any]):
    with fake_cuda() as reads:
        x = torch.ones(3).to("cuda")
        with suppress(DynamicOutputShapeException):
            wait(x)
        assert reads.of_device


@pytest.mark.parametrize(
    ("copy", "waits"),
    [
        (lambda x: x.cpu(), True),
        (lambda x: x.cpu().numpy(), True),
        (lambda x: torch.ones(3).to("cuda"), True),
        (lambda x: torch.tensor([1.0, 2.0], device="cuda"), True),
        (lambda x: torch.where(x > 0, torch.tensor(1.0), x), True),
        (lambda x: torch.where(x > 0, 1, x), False),
        (lambda x: x.copy_(torch.ones(3)), True),
        (lambda x: x.copy_(torch.ones(3), non_blocking=True), False),
        (lambda x: torch.ones(3).to("cuda", non_blocking=True), False),
        (lambda x: torch.full((), 1.0, device="cuda") + x.to("cuda").half(), False),
    ],
)
def test_a_copy_that_waits_is_detected(copy: Callable[[torch.Tensor], Any], waits: bool):
    with fake_cuda() as reads:
        x = torch.ones(3).to("cuda", non_blocking=True)
        copy(x)
        assert (bool(reads.copies), reads.of_device) == (waits, set())


def test_the_small_autograd_engine_computes_torchs_gradients():
    def loss(net: nn.Module) -> torch.Tensor:
        x = torch.linspace(-1, 1, 12).view(3, 4)
        hidden = net[1](net[0](x)) + net[0].bias  # used twice, and broadcast
        return (net[2](hidden).square().mean() + hidden.abs().sum(1, keepdim=True) * net[0].weight[0]).sum()

    ours, theirs = (nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    backward(loss(ours))
    loss(theirs).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
