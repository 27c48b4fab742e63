"""Measure the bundled networks on held-out scenes.

    python -m microdit.assets.build.evaluate

microdit/assets/README.md has the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from microdit.assets.build.hard_negatives import ATTRIBUTES, swap
from microdit.common.rng import generator, numpy_generator
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages, Sample
from microdit.data.registry import build_dataset
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import SCORE_CLIP, TEXT_CLIP, AutoencoderConfig
from microdit.encoders.open_clip_checkpoint import ClipFolder, open_clip_folder

SEED = 31  # of scenes that no training run of the assets used

Embed = Callable[[Sequence[str]], Tensor]


def held_out(count: int, resolution: int = 64) -> list[Sample]:
    """Return scenes of the dataset's default distribution, unused in training.

    Args:
        count: number of scenes.
        resolution: pixels per side.
    """
    data: CaptionedImages = build_dataset(DataConfig(resolution=resolution, seed=SEED, val_size=count), "val")
    return [data[i] for i in range(count)]


def psnr(items: Sequence[Sample], latent_noise: float = 0.0) -> float:
    """Return the mean PSNR of the autoencoder's round trip, in dB.

    Args:
        items: scenes.
        latent_noise: standard deviation of the noise added to latents, whose own is about 1.
    """
    autoencoder = build_autoencoder(AutoencoderConfig())
    draw = generator(SEED, "latent noise")
    values = []
    for item in items:
        image = torch.from_numpy(item.image).unsqueeze(0)
        latent = autoencoder.encode(image)
        latent = latent + latent_noise * torch.randn(latent.shape, generator=draw)
        error = (autoencoder.decode(latent).float() - image.float()).square().mean() / 255**2
        values.append(-10 * torch.log10(error).item())
    return float(np.mean(values))


def retrieval(images: Tensor, texts: Tensor, captions: Sequence[str]) -> tuple[float, float]:
    """Return top-1 accuracies of retrieval; equal captions are equally correct.

    Args:
        images: unit-length embeddings (N, E).
        texts: those of their captions (N, E).
        captions: N texts.

    Returns:
        Image to text and text to image, in [0, 1].
    """
    similarity = images @ texts.T
    names = np.array(captions)
    to_text = names[similarity.argmax(1).numpy()] == names
    to_image = names[similarity.argmax(0).numpy()] == names
    return float(to_text.mean()), float(to_image.mean())


def swap_accuracy(images: Tensor, embed: Embed, captions: Sequence[str], attribute: str) -> tuple[float, int]:
    """Return how often an image is nearer to its caption than to a changed one.

    Args:
        images: unit-length embeddings (N, E).
        embed: maps captions to unit-length embeddings.
        captions: N texts.
        attribute: what the changed captions differ in, of `ATTRIBUTES`.

    Returns:
        The share in [0, 1], and the number of captions with the attribute.
    """
    rng = numpy_generator(SEED, f"swap {attribute}")
    pairs = [(i, changed) for i, c in enumerate(captions) if (changed := swap(c, attribute, rng)) is not None]
    rows = [i for i, _ in pairs]
    true = (images[rows] * embed([captions[i] for i in rows])).sum(1)
    false = (images[rows] * embed([changed for _, changed in pairs])).sum(1)
    return (true > false).float().mean().item(), len(pairs)


def embed_scenes(clip: ClipFolder, items: Sequence[Sample]) -> Tensor:
    """Return unit-length embeddings of scenes.

    Args:
        clip: the network.
        items: N scenes.

    Returns:
        (N, E) float32.
    """
    return clip.embed_images(torch.from_numpy(np.stack([item.image for item in items])))


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512, help="held-out scenes (default 512)")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    items = held_out(count)
    print(f"{count} held-out scenes of the default distribution, seed {SEED}")
    print(f"autoencoder  PSNR {psnr(items):.2f} dB at 64 px, {psnr(held_out(count // 4, 128)):.2f} dB at 128 px")
    print(f"             PSNR {psnr(items[: count // 4], 0.1):.2f} dB at 64 px with latent noise of std 0.1")
    captions = [item.caption for item in items]
    for name, folder in (("text_clip", TEXT_CLIP), ("score_clip", SCORE_CLIP)):
        clip = open_clip_folder(folder, name)
        images = embed_scenes(clip, items)
        to_text, to_image = retrieval(images, clip.embed_texts(captions), captions)
        print(f"{name:12s} image to text {to_text:.1%}, text to image {to_image:.1%} top-1 among {count}")
        for attribute in ATTRIBUTES:
            accuracy, stated = swap_accuracy(images, clip.embed_texts, captions, attribute)
            print(f"             {attribute} distinguished from a wrong one in {accuracy:.1%} of {stated} captions")


if __name__ == "__main__":
    main()
