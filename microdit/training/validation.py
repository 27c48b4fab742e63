"""Compute the validation loss on the same images and noise for all arms and steps."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext

import torch

from microdit.common.contract import VAL_LOSS_CURVE, VAL_LOSS_QUARTER_PREFIX
from microdit.common.finite import require_sound
from microdit.common.rng import generator
from microdit.data.latents.training_data import EncodedDataset
from microdit.diffusion import DiffusionConfig, Objective, quantile_sigma
from microdit.training.config import Recipe

BANDS = 4  # equal shares of the noise levels, in ascending order


def validation_noise(config: Recipe) -> DiffusionConfig:
    """Return the noise distribution of validation.

    It is training's, or a log-normal one if `evaluation` sets its parameters, because only losses on the same
    distribution are comparable between arms.
    """
    p_mean, p_std = config.evaluation.p_mean, config.evaluation.p_std
    if p_mean is None and p_std is None:
        return config.diffusion
    return dataclasses.replace(
        config.diffusion,
        distribution="lognormal",
        p_mean=config.diffusion.p_mean if p_mean is None else p_mean,
        p_std=config.diffusion.p_std if p_std is None else p_std,
    )


def evaluation_autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a run's network is evaluated.

    On a GPU it has the precision of training. On a CPU it has full precision, whatever the run's.

    Args:
        precision: `training.precision`.
        device: where the network runs.
    """
    return torch.autocast("cuda", torch.bfloat16) if (precision, device.type) == ("bf16", "cuda") else nullcontext()


@torch.no_grad()
def validate(denoiser: Objective, val: EncodedDataset, config: Recipe, batch_size: int = 64) -> dict[str, float]:
    """Return the unmasked denoising loss over held-out images.

    Noise levels are quantiles, so the loss has no sampling noise. It depends on `evaluation.seed`, not on the run's
    seed. It is the objective's own loss, so losses of different objectives are not comparable.

    Args:
        denoiser: the objective with the network to validate.
        val: held-out data; the first `training.val_images` are used, repeated if there are fewer.
        config: settings of the run.
        batch_size: images per forward pass.

    Returns:
        `val/loss`, and `val/loss_q1` to `val/loss_q4` by quarter of the noise distribution, from the lowest noise.

    Raises:
        DivergenceError: if a loss is not finite.
    """
    count = config.training.val_images
    device = next(denoiser.parameters()).device
    draw = generator(config.evaluation.seed, "validation")
    ranks = torch.randperm(count, generator=draw)
    sigma = quantile_sigma(count, validation_noise(config))[ranks]
    noise = torch.randn((count, *val.shape[1:]), generator=draw)
    losses = []
    for start in range(0, count, batch_size):
        rows = torch.arange(start, min(start + batch_size, count))
        x, y = val.batch(rows.numpy() % len(val))
        level, eps = sigma[rows].to(device), noise[rows].to(device)
        with evaluation_autocast(config.training.precision, device):
            losses.append(denoiser.loss(x.to(device), y.to(device), level, eps))
    loss = torch.cat(losses).cpu()
    values = {VAL_LOSS_CURVE: loss.mean().item()}
    for band in range(BANDS):
        inside = loss[(ranks * BANDS) // count == band]
        if len(inside):
            values[f"{VAL_LOSS_QUARTER_PREFIX}{band + 1}"] = inside.mean().item()
    require_sound(values, "in validation")
    return values
