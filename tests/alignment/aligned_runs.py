"""Provide a cheap patch encoder and configurations that align with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from microdit.alignment.patch_encoders import PatchEncoder
from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import EDM
from microdit.model import PatchMask
from microdit.pipeline.inputs import build_components
from microdit.pipeline.run_logger import NullLogger
from microdit.training.feed.batches import draw_batch
from microdit.training.trainer import TrainingLoss, initial_state

HERE = f"{__name__}.Colors"


class Colors(PatchEncoder):
    """Encode a patch as its mean color and the square of it."""

    width = 6
    fingerprint = "colors"
    calls = 0

    def encode(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        x = nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, self.side)
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([x, x.square()], dim=-1)


class Shades(Colors):
    fingerprint = "shades"

    def encode(self, images: Tensor) -> Tensor:
        return 1 - super().encode(images)


class Crooked(Colors):
    fingerprint = "crooked"

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images)[:, 1:]


class Huge(Colors):
    fingerprint = "huge"

    def encode(self, images: Tensor) -> Tensor:
        return 1e6 * super().encode(images)


class Log(NullLogger):
    """Record the curves; interrupt the run after `kill_at` finished steps."""

    def __init__(self, kill_at: int = 0) -> None:
        self.values: dict[tuple[str, int], float] = {}
        self.kill_at = kill_at

    def metrics(self, step: int, values: dict) -> None:
        kept = {name: value for name, value in values.items() if name.startswith(("train/", "val/", "grad"))}
        self.values |= {(name, step): value for name, value in kept.items()}
        if step == self.kill_at:
            raise KeyboardInterrupt


def aligned(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, **changes))


def training(config: Config, out: Path, **changes: object) -> Config:
    changed = dataclasses.replace(config.training, **{"log_every": 1, **changes})
    return dataclasses.replace(config, output_dir=str(out), training=changed)


def a_step(config: Config) -> tuple[TrainingLoss, list[Tensor], PatchMask | None]:
    """Return a loss module at its initial weights, and the inputs of its first step."""
    data = build_components(config).train
    state = initial_state(config, torch.device("cpu"))
    *inputs, plan = draw_batch(config, 0, data, BatchSampler(len(data), 8, 0), state.net).arguments()
    return TrainingLoss(EDM(state.net, 0.5), state.alignment, config.training), inputs, plan
