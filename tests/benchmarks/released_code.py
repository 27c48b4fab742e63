"""Compare a training step with the released code's, on the same weights, interleaved in one process.

python tests/benchmarks/released_code.py --released CHECKOUT [--rounds 15] [--precision bf16]

CHECKOUT is a clone of github.com/SonyResearch/micro_diffusion. It needs einops, easydict, torchmetrics, transformers
and diffusers; Composer is not needed. Both steps draw noise and mask, compute the loss of 8 random images with 75% of
the patches masked, backpropagate, clip the gradient and update the weights by AdamW, on one thread. Before timing, the
outputs of both are compared. Seconds are CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from train_step import RandomData

from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import build_objective
from microdit.model import load_released, mask_from_keep
from microdit.model.presets import preset
from microdit.pipeline.inputs import build_accelerator
from microdit.training.feed.batches import draw_batch
from microdit.training.trainer import TrainingLoss, initial_state, optimizer_step

ARCHITECTURE = "MicroDiT_Tiny_2"
BATCH, TOKENS, MASK_RATIO, SIGMA_DATA, CLIP_NORM = 8, 77, 0.75, 0.9, 0.5
ADAMW = {"lr": 8e-5, "weight_decay": 0.1, "eps": 1e-8, "betas": (0.9, 0.999)}  # of the released configurations
WARMUP_ROUNDS = 2
RELATIVE_TOLERANCE = 1e-4
Step = Callable[[], object]


def released_model(checkout: Path) -> Any:
    """Return the released latent diffusion model, without autoencoder and text encoder.

    Zero weights are replaced by random ones, because they would hide captions and noise levels.
    """
    if importlib.util.find_spec("composer") is None:  # only the base class of the model is needed
        composer = types.ModuleType("composer")
        models = types.ModuleType("composer.models")
        models.ComposerModel = nn.Module  # type: ignore[attr-defined]
        sys.modules |= {"composer": composer, "composer.models": models}
    for name in ("micro_diffusion", "micro_diffusion.models"):  # their __init__ would import Composer's callbacks
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    module = importlib.import_module("micro_diffusion.models.model")
    torch.manual_seed(0)
    net = getattr(module.model_zoo, ARCHITECTURE)()
    for name, parameter in net.named_parameters():
        if not parameter.count_nonzero():
            nn.init.normal_(parameter, std=0.02, generator=generator(0, name))
    frozen = nn.Module()
    frozen.config = types.SimpleNamespace(scaling_factor=1.0)  # type: ignore[assignment]
    return module.LatentDiffusion(net, frozen, nn.Module(), None, train_mask_ratio=MASK_RATIO).train()


def released_step(model: Any, rows: RandomData, precision: str) -> Step:
    """Return a function that runs one optimizer step of the released code."""
    optimizer = torch.optim.AdamW(model.dit.parameters(), **ADAMW)
    order = BatchSampler(len(rows), BATCH, 0)
    steps = iter(range(10**9))

    def step() -> None:
        x, y = rows.batch(order(next(steps)))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.edm_loss(x, y.unsqueeze(1), mask_ratio=MASK_RATIO)
        loss.backward()
        nn.utils.clip_grad_norm_(model.dit.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(released: Any, rows: RandomData, precision: str) -> tuple[Step, nn.Module]:
    """Return a function that runs one of our optimizer steps, and our denoiser, which has the released weights."""
    config = Config.preset("demo")
    changes = {"batch_size": BATCH, "accumulation": 1, "precision": precision, "compile": False, "clip": CLIP_NORM}
    training = dataclasses.replace(config.training, **changes)
    config = dataclasses.replace(config, model=preset(ARCHITECTURE), training=training)
    accelerator = build_accelerator(config)
    state = initial_state(config, accelerator.device)
    weights = {name: tensor.detach().clone() for name, tensor in released.dit.state_dict().items()}
    state.net.load_state_dict(load_released(weights, config.model).state_dict())
    denoiser = build_objective(config.diffusion, state.net, SIGMA_DATA)
    loss = TrainingLoss(denoiser, state.alignment)
    order = BatchSampler(len(rows), BATCH, 0)
    steps = iter(range(10**9))

    def step() -> None:
        batch = draw_batch(config, next(steps), rows, order, state.net)
        optimizer_step(config, ADAMW["lr"], batch, loss, state, accelerator)  # type: ignore[arg-type]

    return step, denoiser


@torch.no_grad()
def largest_gap(released: Any, denoiser: Any, rows: RandomData) -> float:
    """Return the largest difference of the outputs on masked images, relative to the largest output."""
    x, y = rows.batch(BatchSampler(len(rows), BATCH, 0)(0))
    sigma = torch.linspace(0.1, 3, BATCH)
    wrapped = released.model_forward_wrapper
    theirs = wrapped(x, sigma, y.unsqueeze(1), released.dit, mask_ratio=MASK_RATIO)
    kept = (theirs["mask"] == 0).nonzero()[:, 1].view(BATCH, -1)
    plan = mask_from_keep(kept, denoiser.net.config.patches)
    return relative_gap(denoiser(x, sigma, y, plan), theirs["sample"])


def relative_gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest absolute value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def timed(steps: Sequence[Step], rounds: int) -> list[list[float]]:
    """Return the CPU seconds of each step; the steps take turns."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(WARMUP_ROUNDS + rounds):
        for index in range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps))):
            begin = time.process_time()
            steps[index]()
            if turn >= WARMUP_ROUNDS:
                seconds[index].append(time.process_time() - begin)
    return seconds


def main() -> int:
    """Check that outputs agree, time both steps and print the ratio."""
    parser = argparse.ArgumentParser(description="Compare a training step with the released code's.")
    parser.add_argument("--released", type=Path, required=True, help="checkout of SonyResearch/micro_diffusion")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each (default 15)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both (default fp32)")
    options = parser.parse_args()
    if not (options.released / "micro_diffusion/models/dit.py").is_file():
        parser.error(f"--released: {options.released} has no micro_diffusion/models/dit.py")
    torch.set_num_threads(1)
    rows = RandomData(preset(ARCHITECTURE), TOKENS, images=64)
    released = released_model(options.released)
    step, denoiser = our_step(released, rows, options.precision)
    gap = largest_gap(released, denoiser, rows)
    if not gap <= RELATIVE_TOLERANCE:
        print(f"the outputs differ by {gap:.1e} of the largest one: not the same network", file=sys.stderr)
        return 1
    theirs, ours = timed([released_step(released, rows, options.precision), step], options.rounds)
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{ARCHITECTURE}, batch {BATCH}, {MASK_RATIO:.0%} masked, {options.precision}; outputs differ by {gap:.1e}")
    print(f"released {statistics.median(theirs):.3f} s, ours {statistics.median(ours):.3f} s per step")
    print(f"ours / released {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
