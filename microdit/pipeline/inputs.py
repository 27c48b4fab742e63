"""Build what a run needs before its first step: device, data and frozen networks.

They are checked against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from microdit.alignment.feature_cache import build_alignment_features
from microdit.common.errors import ConfigError
from microdit.common.files.atomic import stat_fingerprint, sweep
from microdit.common.hardware import prepare_device
from microdit.common.process.heap import keep_freed_memory
from microdit.config.device import choose_device
from microdit.config.schema import Config
from microdit.config.sizes import Sizes, check_sizes
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages
from microdit.data.latents.dataset import LatentImages, check_autoencoder
from microdit.data.latents.training_data import EncodedDataset, data_fingerprint, encode_dataset
from microdit.data.registry import BUNDLED_DATASETS, build_dataset
from microdit.encoders.autoencoder import Autoencoder, build_autoencoder
from microdit.encoders.config import OF_DATA, AutoencoderConfig, TextConfig
from microdit.encoders.text import TextEncoder, build_text_encoder
from microdit.evaluation.reference import originals_digest, reference_rows

PROCESS_TIMEOUT = timedelta(hours=12)  # of processes that wait for the main one, which alone scores images

Images = tuple[CaptionedImages, CaptionedImages]  # training and validation data


@dataclass(frozen=True)
class RunInputs:
    """Datasets as images and as encoded for the network, and the encoders."""

    train_images: CaptionedImages
    val_images: CaptionedImages
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    train: EncodedDataset
    val: EncodedDataset
    originals: str = ""  # digest of the original images that scores compare with, if the fingerprints don't cover them

    @property
    def data_fingerprint(self) -> str:
        """Return a digest of all data that training reads and scores compare with."""
        trained_on = data_fingerprint(self.train, self.val)
        return f"{trained_on}-{self.originals[:8]}" if self.originals else trained_on


def build_accelerator(config: Config) -> Accelerator:
    """Return an accelerator for the configured device and precision.

    It also prepares the device (`prepare_device`), and makes a process on a CPU reuse freed memory.

    Raises:
        ConfigError: if the device is missing, or the batch size is no multiple of processes x accumulation.
    """
    device = choose_device(config)
    prepare_device(device, config.training.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if AcceleratorState._shared_state:
        # A worker runs many trials in one process, and the shared state would keep the first one's precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    mixed = "bf16" if config.training.precision == "bf16" else "no"
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
    )
    parts = accelerator.num_processes * config.training.micro_batches
    if config.training.batch_size % parts:
        raise ConfigError(
            f"'training.batch_size' ({config.training.batch_size}) must be a multiple of processes x accumulation "
            f"({accelerator.num_processes} x {config.training.accumulation})"
        )
    return accelerator


def build_components(config: Config, device: torch.device | str = "cpu", images: Images | None = None) -> RunInputs:
    """Open or build everything that training reads.

    The data are encoded once into `config.cache_dir`.

    Args:
        config: the settings.
        device: of the encoders.
        images: training and validation data instead of what `config.data` names.

    Returns:
        Datasets and encoders.

    Raises:
        ConfigError: if the network's sizes don't fit the encoders; nothing is encoded then.
        DataError: if an image or caption is missing or damaged.
    """
    device = torch.device(device)
    cache = Path(config.cache_dir).expanduser()
    sweep(cache, depth=2)
    train_images, val_images = images or (_images(config.data, "train"), _images(config.data, "val"))
    autoencoder = open_autoencoder(config, device, train_images)
    text_encoder = _text_encoder(config.text, device, stat_fingerprint(config.text.path))
    check_sizes(config, Sizes(autoencoder.channels, autoencoder.downsampling, text_encoder.width))
    for data in (train_images, val_images):
        if isinstance(data, LatentImages):
            data.decode_by(autoencoder)
    train = encoded_images(config, train_images, autoencoder, text_encoder)
    targets = build_alignment_features(config.alignment, config.model.side, train_images, device, cache / "patches")
    return RunInputs(
        train_images,
        val_images,
        autoencoder,
        text_encoder,
        replace(train, targets=targets),
        encoded_images(config, val_images, autoencoder, text_encoder),
        _originals(config, train_images if config.evaluation.reference_split == "train" else val_images),
    )


def check_counts(config: Config, components: RunInputs) -> None:
    """Check that there are enough captions to draw.

    Args:
        config: names the number of samples, and perhaps a file of prompts.
        components: the data.

    Raises:
        ConfigError: if `evaluation.samples` exceeds the held-out captions, and no file of prompts is given.
    """
    wanted, held_out = config.evaluation.samples, len(components.val)
    if config.evaluation.prompts is None and wanted > held_out:
        raise ConfigError(
            f"'evaluation.samples' is {wanted}, but the data have only {held_out} held-out captions; "
            f"set it to at most {held_out}, raise 'data.val_size', or name a file in 'evaluation.prompts'"
        )


def _originals(config: Config, images: CaptionedImages) -> str:
    """Return a digest of the original images that scores compare with."""
    if not config.evaluation.samples:
        return ""
    rows, count = reference_rows(len(images), config.evaluation.samples, config.evaluation.reference_count)
    return originals_digest(images, rows[: count + config.evaluation.samples])


def open_autoencoder(config: Config, device: torch.device | str, images: CaptionedImages | None = None) -> Autoencoder:
    """Open the configured autoencoder, or the one that encoded the latents.

    Args:
        config: the settings; with `autoencoder.path` OF_DATA, precomputed latents name their autoencoder.
        device: of the autoencoder.
        images: the training data; None: those that `config.data` names are opened if they are latents.

    Returns:
        The autoencoder.

    Raises:
        ConfigError: if it can't be opened, or is another than the one that encoded the latents.
    """
    found = config.autoencoder
    if images is None and config.data.name == "latents":
        images = _images(config.data, "train")
    if not isinstance(images, LatentImages):
        return _autoencoder(found, torch.device(device), stat_fingerprint(found.path))
    if found.path == OF_DATA:
        return images.decoder(device)
    autoencoder = _autoencoder(found, torch.device(device), stat_fingerprint(found.path))
    check_autoencoder(images.root, images.index, autoencoder)
    return autoencoder


def encoded_images(
    config: Config, images: CaptionedImages, autoencoder: Autoencoder, text_encoder: TextEncoder
) -> EncodedDataset:
    """Encode a dataset into `config.cache_dir`, or open what an earlier call encoded.

    Args:
        config: names the cache, and how captions are cached.
        images: the dataset; its own latents are used if it has them.
        autoencoder: encodes the images.
        text_encoder: encodes the captions.

    Returns:
        Latents and caption features, read in batches.

    Raises:
        DataError: if an image or caption is missing or damaged.
    """
    cache = Path(config.cache_dir).expanduser() / "encoded"
    if isinstance(images, LatentImages):
        return images.encoded(text_encoder, cache, config.text.cache)
    return encode_dataset(images, autoencoder, text_encoder, cache, config.text.cache)


# A process that runs many trials reuses what it has opened until the `stat_fingerprint` of the files changes.


@lru_cache(maxsize=2)
def _autoencoder(config: AutoencoderConfig, device: torch.device, files: str) -> Autoencoder:
    return build_autoencoder(config, device)


@lru_cache(maxsize=2)
def _text_encoder(config: TextConfig, device: torch.device, files: str) -> TextEncoder:
    return build_text_encoder(config, device)


def _images(config: DataConfig, split: str) -> CaptionedImages:
    if config.name not in BUNDLED_DATASETS:
        return build_dataset(config, split)  # a user's class may read other files than `config.path`
    return _kept_images(config, split, stat_fingerprint(config.path))


@lru_cache(maxsize=4)  # two datasets of two splits
def _kept_images(config: DataConfig, split: str, files: str) -> CaptionedImages:
    return build_dataset(config, split)
