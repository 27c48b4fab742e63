"""Import MDS folders of the released code: copy latents and caption features into our shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from microdit.common.errors import ConfigError
from microdit.common.files.paths import absolute_if_folder
from microdit.common.process.isolated_venv import find_python
from microdit.data.latents.caption_store import FILE_BYTES, CaptionStore, create_store, digests, store_name
from microdit.data.latents.job import ShardJob
from microdit.data.latents.writer import EncodingStats, write_images
from microdit.data.sources.mds import AUTOENCODER, RELEASED_TEXT_WIDTH, TOOL, GivenLatents, MdsSource
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import AutoencoderConfig, TextConfig
from microdit.encoders.text import TextEncoder, build_text_encoder
from microdit.model.conditioning import unpack


@dataclass(frozen=True)
class MdsOptions:
    """Options of `microdit data encode` for an MDS folder."""

    source: str  # the MDS folder
    out: Path
    resolution: int  # side of the images, pixels
    seed: int  # random seed of the split into train and val
    val_fraction: float
    streaming: Path | None  # a Python that has mosaicml-streaming; None installs one
    cache_dir: Path
    autoencoder: str | None
    precision: Literal["fp32", "bf16", "fp16"]
    captions: bool  # whether caption features are copied
    text: str | None
    text_layer: Literal["last", "penultimate"]
    text_length: int | None


COMPARED_CAPTIONS = 8  # number of captions encoded for comparison
MAX_RELATIVE_ERROR = 0.1  # above the rounding error of half precision


def convert(
    options: MdsOptions, job: ShardJob, device: str, report: Callable[[str], None]
) -> tuple[EncodingStats, int | None]:
    """Copy latents and, with `options.captions`, caption features.

    Args:
        options: what to import.
        job: how shards are written.
        device: where captions are encoded for comparison.
        report: called with lines of progress.

    Returns:
        What this process did, and how many captions were copied (None without `options.captions`).

    Raises:
        ConfigError: if `job` has several parts, or the given encoders can't be those of the folder.
        DataError: if the folder or mosaicml-streaming can't be used.
    """
    if job.parts > 1:
        raise ConfigError("an MDS folder is read by one process: omit --shard")
    python, _ = find_python(TOOL, options.streaming, options.cache_dir)
    folder = Path(options.source).expanduser()
    source = MdsSource(folder, options.resolution, options.seed, options.val_fraction, python)
    try:
        path = options.autoencoder or AUTOENCODER
        latents = GivenLatents(
            source.shape, absolute_if_folder(path), _described(path, options.precision, device, report)
        )
        encoder = None
        if options.text is not None:
            text = TextConfig(options.text, options.text_layer, options.text_length)
            encoder = build_text_encoder(text, device)
        store = _store(options, source, encoder, report) if options.captions else None
        tally = write_images(source, latents, options.out, job, report)
        return tally, None if store is None else _copy_features(store, source)
    finally:
        source.close()


def _described(path: str, precision: Any, device: str, report: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        return build_autoencoder(AutoencoderConfig(path, precision), device).describe()
    except ConfigError as error:
        report(f"cannot verify that the latents were made with '{path}' (not available here: {error})")
        return None


def _store(
    options: MdsOptions, source: MdsSource, encoder: TextEncoder | None, report: Callable[[str], None]
) -> CaptionStore:
    width = encoder.width if encoder else RELEASED_TEXT_WIDTH
    samples = list(source.features(width, COMPARED_CAPTIONS))
    length = len(samples[0][1])
    header: dict[str, Any] = {"length": length, "width": width, "layer": options.text_layer, "fingerprint": None}
    if encoder is None or options.text is None:
        report("the text encoder of caption_latents is unknown; give --text to compare them with its features")
        return create_store(options.out / store_name("given"), header | {"path": None})
    _compare(samples, encoder, options.text)
    header |= {"fingerprint": encoder.fingerprint, "path": absolute_if_folder(options.text)}
    return create_store(options.out / store_name(encoder.fingerprint), header)


def _compare(samples: list[tuple[str, np.ndarray]], encoder: TextEncoder, name: str) -> None:
    """Raise ConfigError if stored features differ from the encoder's."""
    found, _ = unpack(encoder.encode([caption for caption, _ in samples]))
    stored = torch.from_numpy(np.stack([features for _, features in samples])).float()
    shapes = [tuple(one.shape[1:]) for one in (stored, found)]
    error = float((stored - found.cpu()).norm() / found.norm()) if shapes[0] == shapes[1] else float("inf")
    if not error < MAX_RELATIVE_ERROR:
        raise ConfigError(
            f"caption_latents differ from the features of --text {name}: shapes {shapes[0]} and {shapes[1]}, "
            f"relative error {error:.2g}; is --text-layer right?"
        )


def _copy_features(store: CaptionStore, source: MdsSource) -> int:
    """Copy missing features, one file at a time."""
    size, count = max(64, FILE_BYTES // (2 * store.header["length"] * store.header["width"])), 0
    rows = source.features(store.header["width"])
    while chunk := dict(islice(rows, size)):
        known = store.contains(digests(list(chunk)))
        fresh = [caption for caption, old in zip(chunk, known, strict=True) if not old]
        if fresh:
            store.add(fresh, np.stack([chunk[caption] for caption in fresh]), None)
        count += len(fresh)
    return count
