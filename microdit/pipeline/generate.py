"""From captions to pictures: noise that belongs to the image's number, guidance, the sampler, the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.finite import require_finite
from microdit.common.rng import generator
from microdit.diffusion import Objective, SamplerConfig, StepCallback, guided, sample
from microdit.encoders.autoencoder import Autoencoder
from microdit.model.conditioning import Captions
from microdit.pipeline.prompts import Features


def initial_noise(seed: int, stream: str, indices: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Unit normal (B, C, H, W): image i's noise is a function of (seed, stream, i), whatever the batch."""
    return torch.stack([torch.randn(shape, generator=generator(seed, stream, i)) for i in indices])


@torch.no_grad()
def generate(
    denoiser: Objective,
    autoencoder: Autoencoder,
    features: Captions | Features,
    config: SamplerConfig,
    seed: int,
    stream: str = "samples",
    first: int = 0,
    guidance: float | None = None,
    batch_size: int = 64,
    callback: StepCallback | None = None,
) -> np.ndarray:
    """One picture for each row of caption `features` (N, S, Y); returns (N, H, W, 3) uint8.

    Args:
        seed, stream, first: picture n starts from the noise of (seed, stream, first + n).
        guidance: overrides `config.guidance`.
        callback: called after each step of each batch.

    Raises DivergenceError if a sample is not finite.
    """
    net = denoiser.net.config
    shape = (net.in_channels, net.input_size, net.input_size)
    device = next(denoiser.parameters()).device
    scale = config.guidance if guidance is None else guidance
    pictures = []
    for start in range(0, len(features), batch_size):
        y = features[start : start + batch_size].to(device)
        indices = range(first + start, first + start + len(y))
        noise = initial_noise(seed, stream, indices, shape).to(device)
        churn = [generator(seed, f"{stream}/churn", i) for i in indices]
        model = guided(denoiser, y, scale, config.guidance_interval, config.guidance_by)
        latents = sample(model, noise, config, churn, callback)
        pictures.append(autoencoder.decode(require_finite(latents, "sampled latents")).cpu().numpy())
    side = net.input_size * autoencoder.downsampling
    return np.concatenate(pictures) if pictures else np.zeros((0, side, side, 3), np.uint8)


def strip(pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) side by side: (H, N W, 3)."""
    return np.concatenate(list(pictures), axis=1)


def grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, 3) in rows of `columns`, the last one filled with white."""
    missing = -len(pictures) % columns
    blank = np.full((missing, *pictures.shape[1:]), 255, np.uint8)
    full = np.concatenate([pictures, blank])
    return np.concatenate([strip(full[i : i + columns]) for i in range(0, len(full), columns)], axis=0)


def save_png(image: np.ndarray, path: Path | str) -> None:
    """Writes (H, W, 3) uint8 atomically."""
    from PIL import Image

    sweep(Path(path).parent)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
