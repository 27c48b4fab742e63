"""Run a configuration from its data to scores: training, samples, evaluation.

A logger receives the results.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from microdit.alignment.patch_encoders import check_encoder
from microdit.common.contract import COST_PREFIX, FINAL_VAL_LOSS, SECONDS, USD, VAL_LOSS_CURVE, final_metric
from microdit.common.errors import StopTraining
from microdit.common.files.atomic import sweep, write_text
from microdit.common.finite import require_sound
from microdit.common.hardware import device_name, gpu_memory, versions
from microdit.common.process.waiting import waiting
from microdit.config.device import choose_device
from microdit.config.identity import ALGORITHM, training_key
from microdit.config.schema import Config, save_config
from microdit.data.latents.training_data import data_fingerprint
from microdit.diffusion import build_objective
from microdit.encoders.text_record import text_record
from microdit.evaluation.report import check_scoring, feature_net_name
from microdit.model import DiT
from microdit.model.cost.memory import batch_bytes, check_memory
from microdit.model.cost.network import parameters
from microdit.pipeline.cost import COST_METRICS, cost_facts
from microdit.pipeline.evaluate import generate_and_score
from microdit.pipeline.export import export_final
from microdit.pipeline.generate import generate, save_png, strip
from microdit.pipeline.inputs import (
    Images,
    RunInputs,
    build_accelerator,
    build_components,
    check_counts,
)
from microdit.pipeline.prompts import shown_prompts
from microdit.pipeline.run_logger import NullLogger, RunFact, RunLogger
from microdit.training.checkpoint import Identity
from microdit.training.graceful_stop import GracefulStop
from microdit.training.init_weights import check_initial
from microdit.training.memory import check_fits
from microdit.training.optim.init_optimizer import check_initial_optimizer
from microdit.training.trainer import sigma_data, train
from microdit.training.validation import validate


def run(
    config: Config,
    recorder: RunLogger | None = None,
    progress: bool = False,
    stop: GracefulStop | None = None,
    images: Images | None = None,
) -> dict[str, float]:
    """Train a configuration, draw and score samples, and return the final metrics.

    Resumes from the newest checkpoint under `config.output_dir`. Writes there config.yaml, model.safetensors (the
    averaged weights), checkpoints/, samples/ and metrics.json; if there are several processes, the main one writes.

    Args:
        config: the settings.
        recorder: receives what the run reports.
        progress: show a progress bar.
        stop: ends the run at the next step when it is requested.
        images: training and validation data instead of what `config.data` names.

    Returns:
        Values by name: `final/val_loss`, other `final/...` scores if `evaluation.samples` > 0, and `cost/...`.

    Raises:
        MicroditError: if a setting, the data or the weights can't be used.
        KeyboardInterrupt: if `stop` was requested; a checkpoint is kept.
    """
    accelerator = build_accelerator(config)
    report = recorder if recorder is not None and accelerator.is_main_process else NullLogger()
    _check_memory(config, accelerator.device, accelerator.num_processes)
    components = _checked(config, accelerator.device, images)
    output = Path(config.output_dir)
    if accelerator.is_main_process:
        sweep(output, depth=1)
        save_config(config, output / "config.yaml")
    stop = stop if stop is not None else GracefulStop()
    try:
        report.start(config, run_facts(config, components, accelerator))
        metrics = _train_and_score(config, components, report, accelerator, progress, stop)
    except (KeyboardInterrupt, StopTraining):
        with stop.closing():
            report.finish("KILLED")
        raise
    except BaseException:
        with stop.closing():
            report.finish("FAILED")
        raise
    with stop.closing():
        report.finish("FINISHED")
    accelerator.wait_for_everyone()
    return metrics


def _check_memory(config: Config, device: torch.device, processes: int) -> None:
    resolution = config.data.resolution
    batch = batch_bytes(config.model, resolution, config.training.batch_size)
    images = 3.0 * resolution**2 * config.evaluation.samples
    check_memory(parameters(config.model), batch, images, device, processes)
    if device.type == "cuda":
        check_fits(config, gpu_memory(), device_name(device), processes)


def prepare(config: Config) -> RunInputs:
    """Check all settings and encode the data into the cache, without training.

    It is called once before many runs start.

    Returns:
        The datasets and encoders.

    Raises:
        MicroditError: if a setting, a file or the data can't be used.
    """
    return _checked(config, choose_device(config))


def check_files(config: Config) -> None:
    """Check the files that `config` names, without computing anything.

    Raises:
        MicroditError: if a file is missing, or of another kind.
    """
    check_initial(config)
    check_initial_optimizer(config)
    check_scoring(config.evaluation)
    check_encoder(config.alignment, config.model.side)


def _checked(config: Config, device: torch.device, images: Images | None = None) -> RunInputs:
    check_files(config)
    with waiting("the data to be read, and encoded if it is not in the cache"):
        components = build_components(config, device, images)
    check_counts(config, components)
    return components


def run_facts(config: Config, components: RunInputs, accelerator: Accelerator) -> dict[str, RunFact]:
    """Return what a run logs before its first step.

    Args:
        config: the settings.
        components: the data.
        accelerator: holds the device and the number of processes.

    Returns:
        Fingerprints, sigma_data, device, versions, number of processes, and `cost_facts`, by name.
    """
    return {
        "data_fingerprint": components.data_fingerprint,
        "feature_net": feature_net_name(config.evaluation),
        "sigma_data": sigma_data(config, components.train),
        "device": device_name(accelerator.device),
        "versions": versions(),
        "processes": accelerator.num_processes,
        **cost_facts(config),
    }


def run_identity(config: Config, components: RunInputs) -> Identity:
    """Return what a resumed checkpoint must match.

    Args:
        config: the settings.
        components: the data.

    Returns:
        Settings, algorithm and data.
    """
    return Identity(training_key(config), ALGORITHM, data_fingerprint(components.train, components.val))


def _train_and_score(
    config: Config,
    components: RunInputs,
    recorder: RunLogger,
    accelerator: Accelerator,
    progress: bool,
    stop: GracefulStop | None,
) -> dict[str, float]:
    samples = Path(config.output_dir) / "samples"
    shown = shown_prompts(components.val, config.training.sample_count)
    sigma = sigma_data(config, components.train)

    def draw_shown(step: int, net: DiT) -> np.ndarray:
        denoiser = build_objective(config.diffusion, net, sigma).eval()
        drawn = generate(
            denoiser,
            components.autoencoder,
            shown.features,
            config.sampler,
            config.evaluation.seed,
            "shown",
            precision=config.training.precision,
        )
        if accelerator.is_main_process:
            save_png(strip(drawn), samples / f"step_{step:08d}.png")
            recorder.image(step, "samples", strip(drawn))
        return drawn

    state = train(
        config,
        components.train,
        components.val,
        run_identity(config, components),
        recorder,
        accelerator,
        draw_shown,
        progress,
        stop,
    )
    denoiser = build_objective(config.diffusion, state.averaged, sigma).eval()
    losses = validate(denoiser, components.val, config)
    recorder.metrics(state.step, losses)
    facts = cost_facts(config)
    metrics = {COST_PREFIX + name: float(facts[name]) for name in COST_METRICS} | {
        SECONDS: state.seconds,
        USD: state.seconds / 3600 * config.cost.usd_per_hour,
    }
    metrics[final_metric(FINAL_VAL_LOSS)] = losses[VAL_LOSS_CURVE]
    drawn = draw_shown(state.step, denoiser.net)
    if accelerator.is_main_process:
        text = text_record(config.text, components.text_encoder.fingerprint)
        export_final(config, denoiser, drawn, shown, text, recorder)
    with waiting("samples to be drawn and scored"):
        metrics |= generate_and_score(config, components, denoiser, accelerator)
    require_sound(metrics, "at the end of the run")
    if accelerator.is_main_process:
        recorder.metrics(state.step, metrics)
        path = Path(config.output_dir) / "metrics.json"
        write_text(path, json.dumps(metrics, indent=1))
        recorder.artifact(path)
    return metrics
