"""Opening a finished run again: to draw new captions, or to score it or any pictures as it was scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import CheckpointError
from microdit.common.files.atomic import sweep
from microdit.common.files.tensors import read_tensors
from microdit.config.schema import Config, load_config
from microdit.config.sizes import Sizes
from microdit.data.registry import build_dataset
from microdit.diffusion import Denoiser
from microdit.encoders.autoencoder import Autoencoder
from microdit.encoders.text import TextEncoder, build_text_encoder
from microdit.encoders.text_record import check_features
from microdit.evaluation.image_folder import evaluate_folder
from microdit.evaluation.report import check_scoring
from microdit.model import DiT
from microdit.pipeline.final_evaluation import generate_and_score
from microdit.pipeline.inputs import build_components, choose_device, load_plugins, open_autoencoder
from microdit.pipeline.sizes import check_sizes
from microdit.pipeline.train_and_evaluate import build_accelerator, check_counts
from microdit.training.validation import validate


@dataclass(frozen=True)
class Pipeline:
    """A run's averaged network and the frozen parts that it was trained with."""

    config: Config
    denoiser: Denoiser
    autoencoder: Autoencoder
    text_encoder: TextEncoder


def load_run(folder: Path | str) -> Pipeline:
    """Opens a run's output folder; raises ConfigError or CheckpointError naming the missing or damaged file."""
    folder = Path(folder)
    config = load_config(folder / "config.yaml")
    load_plugins(config)
    device = choose_device(config)
    if device.type == "cpu":
        torch.set_num_threads(config.training.threads)
    denoiser = load_denoiser(config, folder / "model.safetensors").to(device)
    autoencoder, text_encoder = open_autoencoder(config, device), build_text_encoder(config.text, device)
    check_sizes(config, Sizes(autoencoder.channels, autoencoder.downsampling, text_encoder.width))
    return Pipeline(config, denoiser, autoencoder, text_encoder)


def load_denoiser(config: Config, path: Path) -> Denoiser:
    """Load the averaged weights at `path` into the network that `config` describes, ready to sample on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged or doesn't fit.
        ConfigError: if the weights were trained on other text features than `config` names.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; has the run finished?")
    check_features(path, config.text)
    net = DiT(config.model, seed=None)
    tensors = read_tensors(path)
    try:
        sigma_data = float(tensors.pop("sigma_data"))
        net.load_state_dict(tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be loaded: {' '.join(str(error).split())[:400]}") from None
    return Denoiser(net, sigma_data).eval()


def load_config_with_overrides(source: Path | str, changes: Mapping[str, Any]) -> Config:
    """The configuration of a run's folder, or a config.yaml itself; `changes` override keys of `evaluation`."""
    source = Path(source)
    config = load_config(source / "config.yaml" if source.is_dir() else source)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes))
    load_plugins(config)
    return config


def evaluate_run(folder: Path | str, config: Config) -> dict[str, float]:
    """Scores (named as by `score`) and `val_loss` of the finished run in `folder`, measured as `config` says."""
    check_scoring(config.evaluation)
    accelerator = build_accelerator(config)
    denoiser = load_denoiser(config, Path(folder) / "model.safetensors").to(accelerator.device)
    untrained = dataclasses.replace(config, alignment=AlignmentConfig())  # only training reads patch features
    components = build_components(untrained, accelerator.device)
    check_counts(config, components)
    values = generate_and_score(config, components, denoiser, accelerator)
    loss = validate(denoiser, components.val, config)["val/loss"]
    return {name.removeprefix("final/"): value for name, value in values.items()} | {"val_loss": loss}


def evaluate_pictures(folder: Path | str, config: Config) -> dict[str, float]:
    """Scores of a folder of captioned pictures against `config`'s dataset; see `evaluate_folder` for its files."""
    evaluation = dataclasses.replace(config.evaluation, prompts=None)  # the folder brings its captions
    check_scoring(evaluation)
    reference = build_dataset(config.data, config.evaluation.reference_split)
    cache = Path(config.cache_dir).expanduser() / "features"
    sweep(cache)
    return evaluate_folder(folder, reference, evaluation, cache)
