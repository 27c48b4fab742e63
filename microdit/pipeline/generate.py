"""Generate images of caption features: initial noise, guided sampling, decoding.

It also arranges images in rows and saves them.

N images, B batch, C latent channels, H W height and width, S text tokens, Y text width.
"""

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
from microdit.model import DiTConfig
from microdit.model.conditioning import CachedCaptions, Captions
from microdit.model.cost.network import TEXT_TOKENS
from microdit.pipeline.prompts import Features
from microdit.training.validation import evaluation_autocast

CPU_TOKENS = 1024  # per pass on a CPU; activations of more exceed its caches
MAX_DEVICE_BATCH = 512  # images per pass on other devices, if their memory suffices
SHARE_OF_FREE_MEMORY = 0.5  # that a pass on a GPU may use
LIVE_ACTIVATIONS = 32  # values of float32 per token and channel that a block holds at once, at most
DECODED_TOGETHER = 64  # images per pass of the autoencoder


def initial_noise(seed: int, stream: str, indices: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Return unit normal noise.

    Image i's noise depends on (seed, stream, i) only, not on the batch.

    Args:
        seed: of the run or the call.
        stream: name of the random stream.
        indices: numbers i of the images.
        shape: (C, H, W) of one image's latents.

    Returns:
        (B, C, H, W) float32 on the CPU, one per index.
    """
    return torch.stack([torch.randn(shape, generator=generator(seed, stream, i)) for i in indices])


def sampling_batch(config: DiTConfig, device: torch.device) -> int:
    """Return the number of images to compute at once for the best throughput.

    Args:
        config: the architecture.
        device: where it runs.
    """
    if device.type == "cpu":
        return max(CPU_TOKENS // config.patches, 1)
    if device.type != "cuda" or not torch.cuda.is_available():
        return DECODED_TOGETHER
    captions = 2 * (config.depth + config.mixer.depth) * TEXT_TOKENS  # keys and values, kept by `CachedCaptions`
    per_image = 4 * config.width * (LIVE_ACTIVATIONS * config.patches + captions)
    fits = int(SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0] / per_image)
    # A power of two, so that small differences of free memory don't change the batch.
    return min(1 << max(fits.bit_length() - 1, 0), MAX_DEVICE_BATCH)


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
    batch_size: int | None = None,
    callback: StepCallback | None = None,
    precision: str = "fp32",
) -> np.ndarray:
    """Return one image per row of caption features.

    Args:
        denoiser: the network.
        autoencoder: decodes its latents.
        features: caption features (N, S, Y).
        config: the sampler.
        seed: image n starts from the noise of (seed, stream, first + n).
        stream: name of the random stream.
        first: number of the first image.
        guidance: overrides `config.guidance`.
        batch_size: images computed at once; None: `sampling_batch`.
        callback: called after each step of each batch.
        precision: of the run; used on a GPU only, for the network.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        DivergenceError: if a sample is not finite.
    """
    net = denoiser.net.config
    shape = (net.in_channels, net.input_size, net.input_size)
    device = next(denoiser.parameters()).device
    scale = config.guidance if guidance is None else guidance
    batch_size = batch_size or sampling_batch(net, device)
    images = []
    for start in range(0, len(features), batch_size):
        y = features[start : start + batch_size].to(device)
        indices = range(first + start, first + start + len(y))
        noise = initial_noise(seed, stream, indices, shape).to(device)
        churn = [generator(seed, f"{stream}/churn", i) for i in indices]
        model = guided(denoiser, CachedCaptions(y), scale, config.guidance_interval, config.guidance_by)
        with evaluation_autocast(precision, device):
            latents = require_finite(sample(model, noise, config, churn, callback), "sampled latents")
        for part in latents.split(DECODED_TOGETHER):
            images.append(autoencoder.decode(part).cpu().numpy())
    side = net.input_size * autoencoder.downsampling
    return np.concatenate(images) if images else np.zeros((0, side, side, 3), np.uint8)


def strip(images: np.ndarray) -> np.ndarray:
    """Return images side by side.

    Args:
        images: (N, H, W, 3).

    Returns:
        (H, N W, 3).
    """
    return np.concatenate(list(images), axis=1)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images in rows; white images fill up the last row.

    Args:
        images: (N, H, W, 3) uint8.
        columns: images per row.

    Returns:
        (ceil(N / columns) H, columns W, 3) uint8.
    """
    missing = -len(images) % columns
    blank = np.full((missing, *images.shape[1:]), 255, np.uint8)
    full = np.concatenate([images, blank])
    return np.concatenate([strip(full[i : i + columns]) for i in range(0, len(full), columns)], axis=0)


def save_png(image: np.ndarray, path: Path | str) -> None:
    """Write an image atomically.

    Args:
        image: (H, W, 3) uint8.
        path: the file; its folder is created if missing.
    """
    from PIL import Image

    sweep(Path(path).parent)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
