"""Resolve settings that are `auto` before a run is identified.

What they become is recorded in the run's configuration and is part of its key, so one key never has two precisions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from microdit import training as train
from microdit.common.hardware import can_compile, gpu_memory, has_cuda, has_fast_bf16
from microdit.common.process.distributed import world_size
from microdit.encoders.config import TextConfig
from microdit.encoders.sizes import text_length
from microdit.model.config import DiTConfig
from microdit.model.cost import network as cost
from microdit.training.config import Recipe, TrainingConfig

AUTO: Final = "auto"

# Compiling takes up to 50 s and makes a step about 1.2 times faster, so it pays after 300 s of training. The speed is
# that of uncompiled steps, per CPU thread and per GPU; it need not be exact, but it must not be measured.
COMPILE_PAYS_SECONDS = 600
CPU_FLOPS_PER_SECOND = 30e9
GPU_FLOPS_PER_SECOND = 100e12

# On a CPU the conversions to bf16 and back take longer than the matrix products of a small pass save; see
# experiments/results/bench/cpu_step.md.
BF16_PAYS_FLOPS = 3e9


def resolve_automatic(training: TrainingConfig, model: DiTConfig, text: TextConfig) -> TrainingConfig:
    """Return `training` with a value for each setting that is `auto`.

    Precision follows from the machine's instructions and, on a CPU, from the size of a pass; compilation follows from
    the length of the run. Neither is timed, so the same settings give the same values on the same machine.

    Args:
        training: the settings.
        model: the architecture.
        text: gives the caption length.
    """
    if AUTO not in (training.precision, training.compile):
        return training
    on_gpu = _on_gpu(training)
    values: dict[str, Any] = {}
    if training.precision == AUTO:
        pays = on_gpu or _pass_flops(training, model, text) >= BF16_PAYS_FLOPS
        values["precision"] = "bf16" if pays and has_fast_bf16(on_gpu) else "fp32"
    if training.compile == AUTO:
        possible = training.parallel == "ddp" and can_compile(on_gpu)
        values["compile"] = possible and _seconds(training, model, text, on_gpu) >= COMPILE_PAYS_SECONDS
    return dataclasses.replace(training, **values)


def _pass_flops(training: TrainingConfig, model: DiTConfig, text: TextConfig) -> float:
    """Return the FLOPs of the forward and backward pass over one micro-batch."""
    parts = 1 if training.accumulation == AUTO else training.accumulation  # on a CPU, auto becomes 1
    return training.batch_size / parts * _image_flops(model, text)


def resolve_accumulation(config: Recipe) -> TrainingConfig:
    """Return `config.training` with the fewest micro-batches that fit the GPU.

    On a CPU their number is 1.

    Args:
        config: settings of the run, whose precision is resolved.

    Raises:
        ConfigError: if not even one image fits.
    """
    training = config.training
    if training.accumulation != AUTO:
        return training
    fits = _on_gpu(training) and has_cuda()
    parts = train.fewest_micro_batches(config, gpu_memory(), world_size()) if fits else 1
    return dataclasses.replace(training, accumulation=parts)


def _on_gpu(training: TrainingConfig) -> bool:
    return training.device == "cuda" or (training.device == AUTO and has_cuda())


def _seconds(training: TrainingConfig, model: DiTConfig, text: TextConfig, on_gpu: bool) -> float:
    """Return roughly how long the training takes without compilation."""
    speed = GPU_FLOPS_PER_SECOND if on_gpu else CPU_FLOPS_PER_SECOND * training.threads
    return training.steps * training.batch_size * _image_flops(model, text) / speed


def _image_flops(model: DiTConfig, text: TextConfig) -> int:
    return cost.training_flops(model, text_length(text) or cost.TEXT_TOKENS)
