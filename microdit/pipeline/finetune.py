"""Style fine-tuning: a finished run goes on, for a few steps, on a folder of captioned pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.parsing import override, to_mapping
from microdit.config.schema import Config, config_from_mapping, load_config
from microdit.config.sizes import follow_encoders
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.training.config import EmaConfig, ScheduleConfig
from microdit.training.init_weights import WEIGHTS

# How style fine-tuning differs from the run that it starts from; every value can be overridden.
STEPS = 300
RATE = 0.3  # of the run's peak rate
WARMUP = 0.05  # of the steps
BATCH = 16  # pictures a step at most: a folder of 8 is then seen twice in each
MEMORY = 0.1  # of the steps: how far the average looks back
DROPOUT = 0.1  # captions dropped, so that guidance goes on working


def finetune_config(
    run: Path, data: Path, out: Path, steps: int | None = None, overrides: Sequence[str] = ()
) -> Config:
    """The configuration that starts from the weights of the finished run in `run` and trains on the pictures in `data`.

    Everything that isn't said otherwise is the run's own: network, encoders, optimiser, sampler, seed. On all patches,
    at a low constant rate. `overrides` are `key=value` words.

    Raises ConfigError for a folder that is no finished run, and for unknown keys, with the nearest name.
    """
    if (run / "model.yaml").is_file():
        raise ConfigError(
            f"{run} is an imported model, which has no recipe to continue with; train a config.yaml with "
            f"'training.init' set to it"
        )
    base = load_config(run / "config.yaml")
    if not (run / WEIGHTS).is_file():
        raise ConfigError(f"{run} has no {WEIGHTS} yet; has the run finished?")
    values = to_mapping(_style(base, run, data, out, STEPS if steps is None else steps))
    given = override(values, overrides)
    follow_encoders(values, given, base.data.resolution // base.model.input_size)
    return config_from_mapping(values, "microdit finetune")


def _style(base: Config, run: Path, data: Path, out: Path, steps: int) -> Config:
    masking = dataclasses.replace(base.model.masking, ratio=0.0)
    training = dataclasses.replace(
        base.training,
        init=str(run.resolve()),
        init_optimizer=False,
        steps=steps,
        batch_size=min(base.training.batch_size, BATCH),
        accumulation=1,
        unmasked_tail=0.0,
        caption_dropout=DROPOUT,
        ema=EmaConfig(decay=1 - 1 / max(MEMORY * steps, 1), start_step=0),
        compile=False,  # takes longer than the steps
        log_every=10,
        val_every=0,
        sample_every=0,
        checkpoint_every=100,
    )
    return dataclasses.replace(
        base,
        name=out.name,
        output_dir=str(out),
        data=DataConfig(name="folder", path=str(data.resolve()), resolution=base.data.resolution),
        model=dataclasses.replace(base.model, masking=masking),
        diffusion=dataclasses.replace(base.diffusion, sigma_data=None),  # as the weights know it
        optimizer=dataclasses.replace(base.optimizer, lr=RATE * base.optimizer.lr),
        schedule=ScheduleConfig("constant", warmup_steps=round(WARMUP * steps)),
        training=training,
        evaluation=dataclasses.replace(base.evaluation, samples=0),
        alignment=AlignmentConfig(),
    )


def words_about(config: Config) -> str:
    """What is about to happen, in a sentence or two."""
    counts = [len(build_dataset(config.data, split)) for split in ("train", "val")]
    training = config.training
    words = (
        f"{counts[0]} pictures to train on and {counts[1]} held out; {training.steps} steps of {training.batch_size} "
        f"at a rate of {config.optimizer.lr:g}, from the weights of {training.init}"
    )
    if not config.evaluation.samples:
        words += (
            "\nonly the validation loss is measured: pictures are scored with evaluation.samples=N, at most as many as "
            f"are held out ({counts[1]})"
        )
    return words
