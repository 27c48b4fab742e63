"""Define the settings of an encoding job.

The module does not import PyTorch, so the command line shows its help quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings

DEFAULT_SHARD_SIZE, DEFAULT_BATCH_SIZE = 4096, 64  # images


@dataclass(frozen=True)
class ShardJob:
    """Configure which shards a process writes, and how."""

    shard_size: Annotated[int, Range(1)] = DEFAULT_SHARD_SIZE
    batch_size: Annotated[int, Range(1)] = DEFAULT_BATCH_SIZE
    part: int = 0  # this process writes shard k if k % parts == part
    parts: int = 1
    round_trips: int = 16  # images per shard whose round trip is measured
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            raise ConfigError(f"--shard {self.part}/{self.parts}: parts are numbered from 0 to {self.parts - 1}")
        check_settings("--", self)
