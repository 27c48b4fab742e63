"""How a folder of encoded images is written, and which part of it by which process."""

from __future__ import annotations

from dataclasses import dataclass

from microdit.common.errors import ConfigError

SHARD_SIZE, BATCH = 4096, 64


@dataclass(frozen=True)
class ShardJob:
    """One process's share: shard k is its own where k % parts = part."""

    shard_size: int = SHARD_SIZE
    batch_size: int = BATCH
    part: int = 0
    parts: int = 1
    round_trips: int = 16  # images of each shard whose round trip is measured
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.parts:
            raise ConfigError(f"--shard {self.part}/{self.parts}: parts are numbered from 0 to {self.parts - 1}")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ConfigError("--shard-size and --batch-size must be at least 1")
