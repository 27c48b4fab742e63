"""Train from Python, on the configured data or on a dataset in memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages
from microdit.data.in_memory import check_dataset, in_memory_name
from microdit.data.latents.dataset import LatentImages
from microdit.encoders.config import OF_DATA
from microdit.pipeline.inputs import Images
from microdit.pipeline.pretrained import Pipeline
from microdit.pipeline.run_logger import RunLogger
from microdit.pipeline.train_and_evaluate import run


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    pipeline: Pipeline
    """The trained network with its encoders, ready to draw."""
    metrics: dict[str, float]
    """`final/val_loss`, other `final/...` scores if `evaluation.samples` > 0, and `cost/...`."""
    folder: Path
    """config.yaml, model.safetensors, checkpoints/, samples/ and metrics.json."""


def train(
    config: Config,
    data: CaptionedImages | None = None,
    val_data: CaptionedImages | None = None,
    logger: RunLogger | None = None,
    progress: bool = False,
) -> TrainingResult:
    """Train a network, score it, and return it.

    Training resumes from the newest checkpoint in `config.output_dir`.

    Args:
        config: the settings, such as `Config.preset("demo")`.
        data: training images with captions; None: what `config.data` names. Any object that follows the protocol
            `CaptionedImages`. Its fingerprint is part of the run's identity.
        val_data: held-out ones, for the validation loss and the scores; required if `data` is given.
        logger: receives everything that the run reports; derive it from `NullLogger`.
        progress: show a progress bar.

    Returns:
        The trained pipeline, the final metrics and the run's folder.

    Raises:
        ConfigError: if a setting is impossible or doesn't fit the data.
        DataError: if a dataset lacks part of the protocol.
        DivergenceError: if the loss becomes NaN or infinite.
    """
    images = _checked_images(config, data, val_data)
    if images is not None:
        config = dataclasses.replace(config, data=_data_config(*images))
    metrics = run(config, logger, progress, images=images)
    return TrainingResult(Pipeline.from_pretrained(config.output_dir), metrics, Path(config.output_dir))


def _checked_images(config: Config, data: CaptionedImages | None, val_data: CaptionedImages | None) -> Images | None:
    if data is None and val_data is None:
        return None
    if data is None or val_data is None:
        raise ConfigError("train: give 'data' and 'val_data', or neither; ImageCaptionDataset.split makes both of one")
    images = check_dataset(data, "data"), check_dataset(val_data, "val_data")
    for role, dataset in zip(("data", "val_data"), images, strict=True):
        if dataset.resolution != config.data.resolution:
            raise ConfigError(
                f"train: {role} has images of {dataset.resolution} px, but 'data.resolution' is "
                f"{config.data.resolution}; use Config.preset(..., overrides=['data.resolution={dataset.resolution}'])"
            )
        if isinstance(dataset, LatentImages) and config.autoencoder.path == OF_DATA:
            raise ConfigError(
                f"train: {role} has latents, but 'autoencoder.path' is {OF_DATA}; name the autoencoder that made them, "
                "or set 'data.name' to latents and 'data.path' to their folder"
            )
    return images


def _data_config(data: CaptionedImages, val_data: CaptionedImages) -> DataConfig:
    """Return settings whose name identifies the content of the run's data."""
    name = in_memory_name(data, val_data)
    return DataConfig(name, resolution=data.resolution, train_size=len(data), val_size=len(val_data))
