"""How fast this machine trains a network: measured once, then kept, so that arms of equal time stay the same arms."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from microdit.common.errors import ConfigError
from microdit.common.files.atomic import write_text
from microdit.common.files.digests import read_signed, signed
from microdit.common.hardware import device_name
from microdit.common.parsing import to_mapping
from microdit.config.schema import Config
from microdit.pipeline.cost import text_tokens
from microdit.pipeline.inputs import choose_device

TRIES = 3  # the fastest counts: whatever else the machine does can only slow a step down


def cached_seconds_per_image(config: Config) -> float:
    """Seconds of training for each image, from `config.cache_dir`, where the first call leaves what it measured.

    Raises ConfigError where the network can't be measured here.
    """
    from sweeps.planning.throughput import measure_seconds_per_image

    training = config.training
    what = {
        "model": to_mapping(config.model),
        "text_tokens": text_tokens(config),
        "batch": [training.batch_size, training.accumulation],
        "how": [training.precision, training.threads],
        "where": [platform.node(), device_name(choose_device(config))],
    }
    digest = sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(config.cache_dir).expanduser() / "pace" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if (kept := _kept(path)) is not None:
            return kept
        tries = [measure_seconds_per_image(config) for _ in range(TRIES)]
        seconds = min((value for value in tries if value is not None), default=None)
        if seconds is None:
            raise ConfigError("a network of this study doesn't fit this machine, so its time can't be measured here")
        write_text(path, signed({"seconds_per_image": seconds, **what}))
    return seconds


def _kept(path: Path) -> float | None:
    """The measurement kept at `path`, None if there is none or it is damaged."""
    try:
        return float(read_signed(path)["seconds_per_image"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: the kept speed can't be read ({error}); it is measured again", file=sys.stderr)
        return None


def training_seconds(config: Config) -> float:
    """Seconds that the training steps of `config` take here; a masked and an unmasked step are told apart."""
    settings = config.training
    masked = cached_seconds_per_image(config) * settings.masked_steps
    tail = settings.steps - settings.masked_steps
    if tail:
        masked += cached_seconds_per_image(unmasked(config)) * tail
    return masked * settings.batch_size


def unmasked(config: Config) -> Config:
    """The same network, trained on all patches."""
    masking = dataclasses.replace(config.model.masking, ratio=0.0)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, masking=masking))
