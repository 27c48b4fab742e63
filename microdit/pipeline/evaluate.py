"""Score a network: draw fixed prompts, measure the images and the validation loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from microdit.alignment.config import AlignmentConfig
from microdit.common.contract import (
    FINAL_PREFIX,
    FINAL_VAL_LOSS,
    FLOOR_SUFFIX,
    NOT_SCORES,
    REAL_SUFFIX,
    VAL_LOSS_CURVE,
    final_metric,
    noise_set_metric,
)
from microdit.common.errors import ConfigError
from microdit.common.files.atomic import sweep
from microdit.config.schema import Config, load_config
from microdit.data.dataset import CaptionedImages
from microdit.data.in_memory import check_dataset
from microdit.data.registry import build_dataset
from microdit.diffusion import Objective
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.image_folder import evaluate_folder
from microdit.evaluation.prompt_files import read_prompts
from microdit.evaluation.report import check_scoring
from microdit.evaluation.score import score
from microdit.pipeline.generate import generate
from microdit.pipeline.inputs import (
    RunInputs,
    build_accelerator,
    build_components,
    check_counts,
    encoded_images,
)
from microdit.pipeline.pretrained import CONFIG, Pipeline, load_denoiser
from microdit.pipeline.prompts import Prompts, held_out_prompts, written_prompts
from microdit.training.run_files import WEIGHTS
from microdit.training.validation import validate


def evaluate(
    pipe: Pipeline,
    data: CaptionedImages | None = None,
    reference: CaptionedImages | None = None,
    evaluation: EvalConfig | None = None,
) -> dict[str, float]:
    """Draw captions of a dataset, and score the images against it.

    Args:
        pipe: the trained network; its settings name the sampler.
        data: captions to draw, and images for the validation loss; None: the datasets of the run.
        reference: real images to compare with; None: `data`, or what the run compares with if there is no `data`.
        evaluation: what to measure; None: the run's settings, with at most as many samples as `data` has.

    Returns:
        Scores by name, as `microdit.evaluation.score.score` gives them, and `val_loss`. With 0 samples only `val_loss`.

    Raises:
        ConfigError: if a setting is impossible, or there are fewer captions than samples.
        DataError: if a dataset lacks part of the protocol or has other image sizes than the network.
    """
    config = pipe.config
    if data is None and reference is not None:
        raise ConfigError("evaluate: 'reference' is given without 'data'; give both")
    if evaluation is not None:
        config = dataclasses.replace(config, evaluation=evaluation)
    elif data is not None and len(data) < config.evaluation.samples:
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, samples=len(data)))
    if data is None:
        return _evaluate_denoiser(config, pipe.denoiser, None, build_accelerator(config))
    data, reference = check_dataset(data, "data"), check_dataset(data if reference is None else reference, "reference")
    side = config.model.input_size * pipe.autoencoder.downsampling
    for role, images in (("data", data), ("reference", reference)):
        if images.resolution != side:
            raise ConfigError(f"evaluate: {role} has images of {images.resolution} px, but the network draws {side} px")
    encoded = encoded_images(config, data, pipe.autoencoder, pipe.text_encoder)
    components = RunInputs(reference, data, pipe.autoencoder, pipe.text_encoder, encoded, encoded)
    train_reference = dataclasses.replace(config.evaluation, reference_split="train")
    config = dataclasses.replace(config, evaluation=train_reference)
    return _evaluate_denoiser(config, pipe.denoiser, components, build_accelerator(config))


def evaluate_run(folder: Path | str, config: Config) -> dict[str, float]:
    """Return scores and `val_loss` of a finished run.

    Args:
        folder: of the run; its weights are read.
        config: the settings to sample and score with, which may differ from the run's.

    Returns:
        Scores by name, without `final/`; only the main process has more than `val_loss`.

    Raises:
        ConfigError: if a setting is impossible.
        CheckpointError: if the weights are missing, damaged or of another architecture.
    """
    check_scoring(config.evaluation)
    accelerator = build_accelerator(config)
    denoiser = load_denoiser(config, Path(folder) / WEIGHTS).to(accelerator.device)
    return _evaluate_denoiser(config, denoiser, None, accelerator)


def evaluate_images(folder: Path | str, config: Config) -> dict[str, float]:
    """Return scores of captioned images against a run's dataset.

    Args:
        folder: images and captions, in one of the forms that `evaluate_folder` reads.
        config: the settings of the run; `evaluation.prompts` is ignored, because the folder has captions.

    Returns:
        Scores by name.

    Raises:
        ConfigError: if a setting is impossible.
        DataError: if an image or a caption is missing or damaged.
    """
    evaluation = dataclasses.replace(config.evaluation, prompts=None)  # the folder has its own captions
    check_scoring(evaluation)
    reference = build_dataset(config.data, config.evaluation.reference_split)
    cache = Path(config.cache_dir).expanduser() / "features"
    sweep(cache)
    return evaluate_folder(folder, reference, evaluation, cache)


def config_to_evaluate(source: Path | str, changes: Mapping[str, Any]) -> Config:
    """Load the configuration of a run and change keys of its `evaluation`.

    Args:
        source: the run's folder, or a config.yaml.
        changes: new values by key, such as {"samples": 64}.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: if the file is missing or a setting is wrong.
    """
    source = Path(source)
    config = load_config(source / CONFIG if source.is_dir() else source)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes))


def _evaluate_denoiser(
    config: Config, denoiser: Objective, components: RunInputs | None, accelerator: Accelerator
) -> dict[str, float]:
    """Score a network on `components`, or on what `config.data` names."""
    check_scoring(config.evaluation)
    if components is None:
        untrained = dataclasses.replace(config, alignment=AlignmentConfig())  # only training reads patch features
        components = build_components(untrained, next(denoiser.parameters()).device)
    check_counts(config, components)
    values = generate_and_score(config, components, denoiser, accelerator)
    loss = validate(denoiser, components.val, config)[VAL_LOSS_CURVE]
    return {name.removeprefix(FINAL_PREFIX): value for name, value in values.items()} | {FINAL_VAL_LOSS: loss}


def generate_and_score(
    config: Config, components: RunInputs, denoiser: Objective, accelerator: Accelerator
) -> dict[str, float]:
    """Draw `evaluation.samples` prompts and score the images.

    Prompts are held-out captions, or those of the file `evaluation.prompts`, which have no classes. Each process draws
    a shard of the images.

    Args:
        config: the settings of the run.
        components: data and encoders.
        denoiser: the network.
        accelerator: holds the number of processes and gathers their images.

    Returns:
        Scores 'final/...', and 'final/noise1/...', 'final/noise2/...' of further sample sets (`evaluation.noises`).
        Empty without samples, and in all processes but the main one.
    """
    count = config.evaluation.samples
    if not count:
        return {}
    prompts = evaluation_prompts(config, components, count)
    real = components.train_images if config.evaluation.reference_split == "train" else components.val_images
    cache = Path(config.cache_dir).expanduser() / "features"
    values: dict[str, float] = {}
    for noise in range(config.evaluation.noises):
        images = _draw(config, components, denoiser, accelerator, prompts, noise_stream(noise))
        if accelerator.is_main_process:
            scores = score(images, prompts.captions, prompts.labels, real, config.evaluation, cache)
            values |= prefix_scores(scores, noise)
    return values


def evaluation_prompts(config: Config, components: RunInputs, count: int) -> Prompts:
    """Return the prompts that an evaluation draws.

    Args:
        config: names a file of prompts in `evaluation.prompts`, or None for the held-out captions.
        components: held-out data and text encoder.
        count: number of prompts; the first ones are returned.
    """
    if config.evaluation.prompts is None:
        return held_out_prompts(components.val, range(count))
    return written_prompts(read_prompts(config.evaluation.prompts, count), components.text_encoder)


def noise_stream(noise: int) -> str:
    """Return the name of the random stream of a sample set.

    Args:
        noise: number of the set; a single evaluation uses set 0.
    """
    return f"evaluation/noise{noise}" if noise else "evaluation"


def prefix_scores(scores: Mapping[str, float], noise: int) -> dict[str, float]:
    """Return scores under the names that a run logs.

    Args:
        scores: values by name.
        noise: number of the sample set. Of sets after 0, only the scores that depend on the noise are included.

    Returns:
        `final/NAME` for set 0, `final/noiseK/NAME` for set K.
    """
    if not noise:
        return {final_metric(name): value for name, value in scores.items()}
    of_real = (*NOT_SCORES, *(name for name in scores if name.endswith((FLOOR_SUFFIX, REAL_SUFFIX))))
    return {noise_set_metric(noise, name): value for name, value in scores.items() if name not in of_real}


def _draw(
    config: Config,
    components: RunInputs,
    denoiser: Objective,
    accelerator: Accelerator,
    prompts: Prompts,
    stream: str,
) -> np.ndarray:
    """Return one image per prompt, (N, H, W, 3) uint8; each process draws a shard."""
    bounds = np.linspace(0, len(prompts.captions), accelerator.num_processes + 1).astype(int)
    first, stop = map(int, bounds[accelerator.process_index :][:2])
    own = generate(
        denoiser,
        components.autoencoder,
        prompts.features.part(first, stop),
        config.sampler,
        config.evaluation.seed,
        stream,
        first=first,
        guidance=config.evaluation.guidance,
        precision=config.training.precision,
    )
    return np.concatenate(gather_object([own]))
