"""Fine-tune the style of a finished run on a folder of captioned images."""

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
from microdit.training.run_files import WEIGHTS

# How style fine-tuning differs from the run that it starts from; every value can be overridden.
DEFAULT_STEPS = 300
LR_FACTOR = 0.3  # of the run's peak learning rate
WARMUP_SHARE = 0.05  # of the steps
MAX_BATCH_SIZE = 16  # images per step; a folder of 8 images is then used twice in each step
EMA_SHARE = 0.1  # of the steps: averaging time of the EMA
CAPTION_DROPOUT = 0.1  # guidance needs the null caption


def finetune_config(
    run: Path, data: Path, out: Path, steps: int | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Return a configuration that fine-tunes a finished run.

    It starts from the run's weights and reuses its network, encoders, optimizer, sampler and seed. It trains on all
    patches, at a low constant learning rate.

    Args:
        run: the finished run's folder.
        data: a folder of captioned images.
        out: the new run's folder.
        steps: optimizer steps; None: `DEFAULT_STEPS`.
        overrides: `key=value` words that change any setting.

    Raises:
        ConfigError: if `run` is not a finished run's folder, or a key is unknown.
    """
    if (run / "model.yaml").is_file():
        raise ConfigError(
            f"{run} is an imported model, which has no recipe to continue; set 'training.init' to it in a "
            "config.yaml and train that"
        )
    base = load_config(run / "config.yaml")
    if not (run / WEIGHTS).is_file():
        raise ConfigError(f"{run} has no {WEIGHTS} yet; has the run finished?")
    values = to_mapping(_style(base, run, data, out, DEFAULT_STEPS if steps is None else steps))
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
        batch_size=min(base.training.batch_size, MAX_BATCH_SIZE),
        accumulation=1,
        unmasked_tail=0.0,
        caption_dropout=CAPTION_DROPOUT,
        ema=EmaConfig(decay=1 - 1 / max(EMA_SHARE * steps, 1), start_step=0),
        compile=False,  # compiling takes longer than the steps
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
        diffusion=dataclasses.replace(base.diffusion, sigma_data=None),  # recorded with the weights
        optimizer=dataclasses.replace(base.optimizer, lr=LR_FACTOR * base.optimizer.lr),
        schedule=ScheduleConfig("constant", warmup_steps=round(WARMUP_SHARE * steps)),
        training=training,
        evaluation=dataclasses.replace(base.evaluation, samples=0),
        alignment=AlignmentConfig(),
    )


def summary(config: Config) -> str:
    """Return one or two lines about a fine-tuning: data, steps, learning rate, scores.

    Raises:
        DataError: if the images can't be read.
    """
    counts = [len(build_dataset(config.data, split)) for split in ("train", "val")]
    training = config.training
    words = (
        f"{counts[0]} images to train on and {counts[1]} held out; {training.steps} steps of {training.batch_size} "
        f"images at learning rate {config.optimizer.lr:g}, from the weights of {training.init}"
    )
    if not config.evaluation.samples:
        words += (
            "\nonly the validation loss is measured; set evaluation.samples=N to score images, at most as many "
            f"as are held out ({counts[1]})"
        )
    return words
