"""Train the bundled autoencoder on emoji-captions scenes, on one CPU thread.

    python -m microdit.assets.build.vae --minutes 35

Most steps use 32 px crops: the network is convolutional, so it learns as much per pixel from a crop as from a whole
image, and four times as many updates fit into the same time. The last fifth uses whole images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microdit.common.files.atomic import atomic_path
from microdit.common.rng import generator, numpy_generator
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.encoders.config import VAE

SEED = 2024
KL_WEIGHT = 5e-4  # per latent value
EDGE_WEIGHT = 0.5
ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (12, 24, 64),  # few channels at high resolution: the art is flat color and edges
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,  # so that the local code is the same at any resolution
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def scenes(count: int, resolution: int, split: str = "train") -> Tensor:
    """Return scenes of every setting of the dataset.

    Args:
        count: number of scenes, a multiple of the 4 settings.
        resolution: pixels per side.
        split: "train" or "val".

    Returns:
        (count, 3, H, W) uint8.
    """
    shares = [(1, True, True), (1, False, False), (2, True, True), (3, True, True)]
    images = []
    for number, (objects, hues, scenery) in enumerate(shares):
        each = count // len(shares)
        config = DataConfig(
            resolution=resolution,
            train_size=each,
            val_size=each,
            seed=SEED + number,
            max_objects=objects,
            hues=hues,
            scenery=scenery,
        )
        dataset = build_dataset(config, split)
        images += [dataset[i].image for i in range(each)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def loss_of(vae: Any, x: Tensor, draw: torch.Generator) -> Tensor:
    """Return L1 on pixels and on their differences (edges), plus the KL term.

    Args:
        vae: diffusers' AutoencoderKL.
        x: images (N, 3, H, W) in [-1, 1].
        draw: source of the posterior's noise.

    Returns:
        A scalar.
    """
    posterior = vae.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=draw)
    r = vae.decode(posterior.mean + posterior.std * noise).sample
    edges = (r.diff(dim=2) - x.diff(dim=2)).abs().mean() + (r.diff(dim=3) - x.diff(dim=3)).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return (r - x).abs().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * kl


def psnr(vae: Any, images: Tensor, noise: float = 0.0) -> tuple[float, Tensor]:
    """Return the mean PSNR of round trips, and the latents.

    Args:
        vae: diffusers' AutoencoderKL.
        images: (N, 3, H, W) uint8.
        noise: standard deviation of the noise added to latents, in units of theirs.

    Returns:
        PSNR in dB, and latents without noise (N, 4, h, w).
    """
    values, latents = [], []
    draw = generator(SEED, "psnr")
    with torch.no_grad():
        for chunk in images.split(32):
            x = chunk.float() / 127.5 - 1
            z = vae.encode(x).latent_dist.mean
            latents.append(z)
            z = z + noise * z.std() * torch.randn(z.shape, generator=draw)
            r = vae.decode(z).sample.clamp(-1, 1)
            values.append(-10 * ((r - x) / 2).square().mean((1, 2, 3)).log10())
    return torch.cat(values).mean().item(), torch.cat(latents)


def main() -> None:
    """Train for the given time, saving the average every minute."""
    from diffusers import AutoencoderKL
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=VAE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)  # diffusers initializes from the global generator
    small, large, held = scenes(12000, 64), scenes(1600, 128), scenes(256, 64, "val")
    vae: Any = AutoencoderKL(**ARCHITECTURE)
    vae = vae.to(memory_format=torch.channels_last)
    ema = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    pick = numpy_generator(SEED, "crops")
    draw = generator(SEED, "posterior")
    begin, step, reported = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - begin) / 60 / arguments.minutes) < 1:
        rate = arguments.lr * min((step + 1) / 200, 1) * (0.5 + 0.5 * np.cos(np.pi * spent)) + 1e-5
        for group in optimizer.param_groups:
            group["lr"] = rate
        source = large if pick.random() < 0.15 else small
        side = 32 if spent < 0.8 else 64
        rows = pick.integers(0, len(source), arguments.batch)
        top, left = pick.integers(0, source.shape[-1] - side + 1, 2)
        x = source[rows, :, top : top + side, left : left + side].float() / 127.5 - 1
        loss = loss_of(vae, x.contiguous(memory_format=torch.channels_last), draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(vae)
        step += 1
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            db, z = psnr(ema.module, held)
            noisy = psnr(ema.module, held[:64], 0.1)[0]
            print(
                f"{spent:5.1%} step {step} loss {loss.item():.4f} PSNR {db:.2f} dB, "
                f"with 10% latent noise {noisy:.2f} dB, latent std {z.std().item():.2f}",
                flush=True,
            )
            save(ema.module, z, arguments.out)
    db, z = psnr(ema.module, held)
    save(ema.module, z, arguments.out)
    print(f"{step} steps, PSNR {db:.2f} dB on {len(held)} held-out scenes")


def save(vae: Any, latents: Tensor, out: Path) -> None:
    """Write a diffusers folder with weights in float16.

    Args:
        vae: diffusers' AutoencoderKL.
        latents: of held-out images; their mean and standard deviation become `shift_factor` and `1 / scaling_factor`.
        out: the folder.
    """
    import copy

    kept = copy.deepcopy(vae).to(memory_format=torch.contiguous_format)
    kept.register_to_config(
        scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item(), force_upcast=True, sample_size=64
    )
    with atomic_path(out) as folder:
        kept.half().save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
