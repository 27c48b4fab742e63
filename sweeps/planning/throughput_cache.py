"""Cache the measured training speed of a network.

Otherwise arms of equal time would have different settings in each launch.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from microdit.common.errors import ConfigError
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import read_signed, signed
from microdit.common.hardware import device_name
from microdit.common.parsing import to_mapping
from microdit.config.device import choose_device
from microdit.config.schema import Config
from microdit.pipeline.cost import text_tokens
from sweeps import planning

REPEATS = 3  # the fastest counts, because other load only slows a step down


def speed_settings(config: Config) -> dict[str, Any]:
    """Return the settings on which the time of a training step depends.

    Args:
        config: the settings of a trial.
    """
    training = config.training
    how = ("device", "threads", "precision", "compile", "draws", "parallel", "residual", "activation_checkpointing")
    return {
        "model": to_mapping(config.model),
        "alignment": to_mapping(config.alignment),
        "optimizer": config.optimizer.type,
        "text_tokens": text_tokens(config),
        "batch": [training.batch_size, training.accumulation],
        "how": [getattr(training, name) for name in how],
    }


def cached_seconds_per_image(config: Config) -> float:
    """Return seconds of training per image.

    The first call measures it and stores it in `config.cache_dir`.

    Raises:
        ConfigError: if the network cannot be measured on this machine.
    """
    facts = speed_settings(config) | {"where": [platform.node(), device_name(choose_device(config))]}
    digest = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(config.cache_dir).expanduser() / "pace" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if (kept := _kept(path)) is not None:
            return kept
        tries = [planning.measure_seconds_per_image(config) for _ in range(REPEATS)]
        seconds = min((value for value in tries if value is not None), default=None)
        if seconds is None:
            raise ConfigError("a network of this study doesn't fit this machine, so its time can't be measured")
        write_text(path, signed({"seconds_per_image": seconds, **facts}))
    return seconds


def _kept(path: Path) -> float | None:
    """Return the measurement stored at `path`; None if it is missing or damaged."""
    try:
        return float(read_signed(path)["seconds_per_image"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: the cached speed can't be read ({error}); measuring again", file=sys.stderr)
        return None


def training_seconds(config: Config) -> float:
    """Return the seconds of all training steps of `config` on this machine."""
    settings = config.training
    seconds = cached_seconds_per_image(config) * settings.masked_steps
    tail = settings.steps - settings.masked_steps
    if tail:
        seconds += cached_seconds_per_image(unmasked(config)) * tail
    return seconds * settings.batch_size


def unmasked(config: Config) -> Config:
    """Return `config` without masking."""
    masking = dataclasses.replace(config.model.masking, ratio=0.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, masking=masking))
