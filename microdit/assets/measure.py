"""Measures the shipped encoders on held-out emoji-captions scenes and prints what README.md states.

python -m microdit.assets.measure [--scenes 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdit.assets import ROOT, SCORE_CLIP, TEXT_CLIP
from microdit.assets.swaps import ATTRIBUTES, swap
from microdit.data.base import DataConfig, Item, build_dataset
from microdit.encoders.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from microdit.encoders.open_clip_folder import ClipFolder, open_clip_folder
from microdit.rng import generator, numpy_generator

SEED = 31337  # no build script uses scenes of this seed
CHUNK = 64


def held_out(count: int, resolution: int = 64) -> list[Item]:
    """Scenes with every option of the dataset, from its val split."""
    dataset = build_dataset(DataConfig(resolution=resolution, val_size=count, seed=SEED), "val")
    return [dataset[i] for i in range(count)]


def stacked(items: Sequence[Item]) -> Tensor:
    """(N, H, W, 3) uint8."""
    return torch.from_numpy(np.stack([item.image for item in items]))


def psnr(autoencoder: Autoencoder, images: Tensor, noise: float = 0.0) -> float:
    """Mean over (N, H, W, 3) uint8 pictures of the round trip's PSNR in dB, with noise added to the scaled latents."""
    values = []
    draw = generator(SEED, "latent-noise")
    for chunk in images.split(CHUNK):
        latents = autoencoder.encode(chunk)
        latents = latents + noise * torch.randn(latents.shape, generator=draw)
        error = (autoencoder.decode(latents).float() - chunk.float()) / 255
        values.append(-10 * error.square().mean((1, 2, 3)).clamp_min(1e-10).log10())
    return torch.cat(values).mean().item()


@torch.no_grad()
def embed_images(clip: ClipFolder, images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 of the tower's own size -> (N, E) of unit length."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    chunks = [(chunk.permute(0, 3, 1, 2).float() / 255 - mean) / std for chunk in images.split(CHUNK)]
    return torch.cat([F.normalize(clip.model.encode_image(chunk), dim=-1) for chunk in chunks])


@torch.no_grad()
def embed_texts(clip: ClipFolder, captions: Sequence[str]) -> Tensor:
    """N captions -> (N, E) of unit length."""
    return torch.cat([F.normalize(clip.model.encode_text(t), dim=-1) for t in clip.tokenize(captions).split(CHUNK)])


def retrieval(image: Tensor, text: Tensor, captions: Sequence[str], among: int) -> tuple[float, float]:
    """Shares of pictures whose caption, and of captions whose picture, comes first among `among`.

    Equal captions count as the same answer. Averaged over consecutive groups of `among`.
    """
    names = np.unique(captions, return_inverse=True)[1]
    hits: list[tuple[float, float]] = []
    for start in range(0, len(captions) - among + 1, among):
        part = slice(start, start + among)
        scores, truth = image[part] @ text[part].T, torch.from_numpy(names[part])
        hits.append(tuple((truth[scores.argmax(dim)] == truth).float().mean().item() for dim in (1, 0)))  # type: ignore[arg-type]
    return float(np.mean([h[0] for h in hits])), float(np.mean([h[1] for h in hits]))


def swap_accuracy(clip: ClipFolder, items: Sequence[Item], image: Tensor, text: Tensor) -> dict[str, tuple[float, int]]:
    """Per attribute: how often a picture is closer to its caption than to one with that fact changed; how many."""
    result = {}
    for attribute in ATTRIBUTES:
        rng = numpy_generator(SEED, attribute)
        wrong = [swap(item.caption, attribute, rng) for item in items]
        rows = [i for i, caption in enumerate(wrong) if caption is not None]
        false = embed_texts(clip, [caption for caption in wrong if caption is not None])
        better = (image[rows] * text[rows]).sum(1) > (image[rows] * false).sum(1)
        result[attribute] = (better.float().mean().item(), len(rows))
    return result


def class_accuracy(clip: ClipFolder, items: Sequence[Item], image: Tensor) -> float:
    """How often the class of a one-object picture is the nearest of ten "a NOUN" captions."""
    from microdit.data.emoji_art import CLASSES
    from microdit.data.emoji_grammar import CLASS_NOUNS, article

    prompts = embed_texts(clip, [f"{article(CLASS_NOUNS[c][0])} {CLASS_NOUNS[c][0]}" for c in CLASSES])
    single = [i for i, item in enumerate(items) if len(item.attributes["objects"]) == 1]
    labels = torch.tensor([items[i].label for i in single])
    return ((image[single] @ prompts.T).argmax(1) == labels).float().mean().item()


def report_clip(folder: Path, items: Sequence[Item]) -> None:
    """Prints one CLIP's figures."""
    clip = open_clip_folder(folder, "clip")
    captions = [item.caption for item in items]
    image, text = embed_images(clip, stacked(items)), embed_texts(clip, captions)
    print(f"\n{folder.name}: {sum(p.numel() for p in clip.model.parameters()):,} parameters")
    for among in (100, len(items)):
        there, back = retrieval(image, text, captions, among)
        print(f"  first among {among}: image to text {there:.1%}, text to image {back:.1%}")
    print(f"  class of one-object pictures, first of ten: {class_accuracy(clip, items, image):.1%}")
    for attribute, (share, count) in swap_accuracy(clip, items, image, text).items():
        print(f"  caption preferred to one with another {attribute}: {share:.1%} of {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the shipped encoders.")
    parser.add_argument("--scenes", type=int, default=1000)
    scenes = parser.parse_args().scenes
    torch.set_num_threads(1)
    items = held_out(scenes)
    size = sum(path.stat().st_size for folder in ROOT.iterdir() if folder.is_dir() for path in folder.rglob("*"))
    print(f"all weights and settings: {size / 1e6:.2f} MB\n\nvae, on {scenes} held-out scenes (a quarter at 128 px)")
    autoencoder = build_autoencoder(AutoencoderConfig())
    images = stacked(items)
    for noise in (0.0, 0.1, 0.2):
        print(f"  64 px, latent noise {noise}: {psnr(autoencoder, images, noise):.2f} dB")
    print(f"  128 px: {psnr(autoencoder, stacked(held_out(max(scenes // 4, 1), 128))):.2f} dB")
    latents = torch.cat([autoencoder.encode(chunk) for chunk in images.split(CHUNK)])
    print(f"  deviation of each latent channel: {[round(v, 2) for v in latents.std((0, 2, 3)).tolist()]}")
    print(f"  mean of each latent channel: {[round(v, 2) for v in latents.mean((0, 2, 3)).tolist()]}")
    for folder in (TEXT_CLIP, SCORE_CLIP):
        report_clip(folder, items)


if __name__ == "__main__":
    main()
