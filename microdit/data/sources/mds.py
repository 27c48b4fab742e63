"""Read MDS folders of precomputed latents, as the released code writes them.

The columns are `caption`, `latents_256`, `latents_512` (fp16 bytes, multiplied by the autoencoder's scaling_factor) and
`caption_latents` (fp16 bytes of S tokens). mosaicml-streaming reads them in a separate virtual environment; it writes
uncompressed copies beside compressed shards. C channels, s latent size, Y width of the text encoder.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from microdit.common.errors import ConfigError, DataError, nearest
from microdit.common.files.digests import sha256
from microdit.common.files.text import check_characters
from microdit.common.process.isolated_venv import Tool
from microdit.common.rng import hash_to_unit_interval
from microdit.data.latents.writer import Latents, Record, Source, chunk_ranges

TOOL = Tool("mosaicml-streaming", "streaming", "mosaicml-streaming>=0.11,<1", "--streaming")
WORKER_SCRIPT = Path(__file__).with_name("mds_worker.py")
AUTOENCODER = "stabilityai/stable-diffusion-xl-base-1.0/vae"  # the released code's default
RELEASED_TEXT_WIDTH = 1024  # of the released code's text encoder, DFN5B's ViT-H/14
DOWNSAMPLING = 8  # pixels per latent, of all its autoencoders
CAPTIONS = "caption_latents"
GRACE_SECONDS = 20.0


class MdsSource(Source):
    """Latents of one resolution from an MDS folder.

    A sample is held out if the hash of its number and the seed is below `val_fraction`.

    Args:
        folder: the MDS folder.
        resolution: side of the images in pixels.
        seed: random seed of the split.
        val_fraction: share of the samples held out.
        python: a Python that has mosaicml-streaming.

    Raises:
        DataError: if the folder can't be read or has no such latents.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, folder: Path, resolution: int, seed: int, val_fraction: float, python: Path) -> None:
        self.resolution, self._folder = resolution, folder
        self._seed, self._fraction = seed, val_fraction
        self._reader = _Reader(folder, python)
        self._column = f"latents_{resolution}"
        kinds = [name for name in self._reader.columns if name.startswith("latents_")]
        if self._column not in self._reader.columns:
            known = ", ".join(kinds) or "no latents"
            raise DataError(f"{folder} has {known}, but --resolution {resolution} needs {self._column}")
        if "caption" not in self._reader.columns:
            raise DataError(f"{folder} has no column 'caption'; {nearest('caption', self._reader.columns)}")
        _, (first,) = next(self._reader.read(0, 1, self._column))
        side = resolution // DOWNSAMPLING
        channels, rest = divmod(len(first) // 2, side * side)
        if rest or not channels:
            raise DataError(
                f"{folder}: {self._column} has {len(first)} bytes, which doesn't fit {side} x {side} latents"
            )
        self.shape = (channels, side, side)
        self.description = {
            "kind": "mds",
            "path": str(folder.absolute()),
            "images": self._reader.count,
            "val_fraction": val_fraction,
            "seed": seed,
            "index": sha256(folder / "index.json")[:16],
        }

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[Record] | None]]:
        for k, rows in chunk_ranges(self._reader.count, size):
            yield k, self._records(rows.start, rows.stop) if wanted(k) else None

    def _records(self, start: int, stop: int) -> Iterator[Record]:
        for i, (caption, (data,)) in enumerate(self._reader.read(start, stop, self._column), start):
            held_out = hash_to_unit_interval(self._seed, i) < self._fraction
            yield Record(f"sample {i}", caption, -1, held_out, partial(self._load, data, i))

    def _load(self, data: bytes, i: int) -> np.ndarray:
        if len(data) != 2 * int(np.prod(self.shape)):
            raise DataError(
                f"{self._folder}, sample {i}: {self._column} has {len(data)} bytes, which doesn't fit {self.shape}"
            )
        return np.frombuffer(data, np.float16).reshape(self.shape)

    def features(self, width: int, limit: int | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the caption features of the samples, in order.

        Args:
            width: Y.
            limit: maximum number of samples; None for all.

        Yields:
            Caption and features (S, Y) float16.

        Raises:
            ConfigError: if the folder has no features, or not of this width.
        """
        if CAPTIONS not in self._reader.columns:
            raise ConfigError(f"{self._folder} has no {CAPTIONS}: omit --captions, and runs encode what they need")
        stop = self._reader.count if limit is None else min(limit, self._reader.count)
        for caption, (data,) in self._reader.read(0, stop, CAPTIONS):
            values = np.frombuffer(data, np.float16)
            if len(values) % width:
                raise ConfigError(
                    f"{CAPTIONS} have {len(values)} numbers, not a multiple of the width {width}; give --text"
                )
            yield caption, values.reshape(-1, width)

    def close(self) -> None:
        """End the reading process."""
        self._reader.close()


class GivenLatents(Latents):
    """Precomputed latents and what is known about their autoencoder.

    Args:
        shape: (C, s, s).
        path: name or folder of the autoencoder.
        described: what `Autoencoder.describe` returns for it; None if it is not available.

    Raises:
        ConfigError: if the autoencoder's latents have another shape, or are shifted.
    """

    def __init__(self, shape: tuple[int, int, int], path: str, described: Mapping[str, Any] | None) -> None:
        self.shape = shape
        facts = described or {"fingerprint": None, "channels": shape[0], "downsampling": DOWNSAMPLING}
        if (facts["channels"], facts["downsampling"]) != (shape[0], DOWNSAMPLING):
            raise ConfigError(
                f"--autoencoder {path} has {facts['channels']} channels and a factor of {facts['downsampling']}, but "
                f"the latents are {shape[0]} x {shape[1]} x {shape[2]} with a factor of {DOWNSAMPLING}"
            )
        if facts.get("shift_factor") or facts.get("latents_mean"):
            raise ConfigError(
                f"--autoencoder {path} shifts its latents, which the released code doesn't: encode the images instead"
            )
        self.header = {"path": path, **facts}

    def encode(self, loaded: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(loaded)).float()

    def error(self, loaded: list[np.ndarray], latents: Tensor) -> list[float]:
        return []


class _Reader:
    """Run the process that reads the folder."""

    def __init__(self, folder: Path, python: Path) -> None:
        # With torchrun's variables it would wait for other processes.
        alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        self._folder, self._errors = folder, tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [str(python), str(WORKER_SCRIPT), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=alone,
        )
        head = self._frame()
        self.count: int = head["count"]
        self.columns: Mapping[str, str] = head["columns"]

    def read(self, start: int, stop: int, *columns: str) -> Iterator[tuple[str, list[bytes]]]:
        """Yield captions and the bytes of the columns; the caller must read to the end."""
        requests, _ = self._pipes()
        requests.write(f"{start} {stop} {' '.join(columns)}\n".encode())
        requests.flush()
        for i in range(start, stop):
            frame = self._frame()
            caption = frame["caption"]
            if not isinstance(caption, str):
                raise DataError(f"{self._folder}, sample {i} has no caption, but {caption!r}")
            check_characters(caption, f"{self._folder}, sample {i}")
            yield caption, [self._exactly(size) for size in frame["sizes"]]

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _frame(self) -> dict[str, Any]:
        line = self._pipes()[1].readline()
        if not line.endswith(b"\n"):
            raise self._failed()
        return dict(json.loads(line))

    def _exactly(self, size: int) -> bytes:
        data = self._pipes()[1].read(size)
        if len(data) != size:
            raise self._failed()
        return data

    def _failed(self) -> DataError:
        self._process.wait(GRACE_SECONDS)
        self._errors.seek(0)
        reason = self._errors.read().decode(errors="replace").strip().split("\n")[-1]
        return DataError(f"{self._folder}: mosaicml-streaming can't read it: {reason[:300]}")

    def close(self) -> None:
        """End the process, even while it writes an answer."""
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(GRACE_SECONDS)  # it ends by itself, and cleans up, when its pipe is closed
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
