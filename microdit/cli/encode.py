"""Implement `microdit data encode`: encode images and captions once for all runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command
from microdit.common.errors import ConfigError
from microdit.common.files.paths import absolute_if_folder
from microdit.data.latents.job import DEFAULT_BATCH_SIZE, DEFAULT_SHARD_SIZE, ShardJob

if TYPE_CHECKING:
    from microdit.data.latents.writer import EncodingStats


def add_encode_command(kinds: Any) -> None:
    """Add `encode` to the subcommands of `data`."""
    made = add_command(
        kinds,
        "encode",
        "precompute latents (and caption features) for data=latents; resumable",
        ["microdit data encode photos --out latents --resolution 256 --captions"],
    )
    made.add_argument("source", help="folder of captioned images; folder saved by datasets; hf:NAME; tars; MDS")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards and their index")
    made.add_argument(
        "--resolution", type=types.count, default=256, metavar="N", help="side of the cropped images (256)"
    )
    made.add_argument("--autoencoder", metavar="PATH", help="as autoencoder.path (builtin; SDXL's for MDS latents)")
    made.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the autoencoder (fp32)")
    text = made.add_argument_group("caption features; otherwise each run caches those it needs")
    text.add_argument("--captions", action="store_true", help="store them: 2 bytes x tokens x width per caption")
    text.add_argument("--text", metavar="PATH", help="as text.path (builtin; unknown for MDS features)")
    text.add_argument("--text-layer", choices=("last", "penultimate"), default="last", help="as text.layer (last)")
    text.add_argument("--text-length", type=types.count, metavar="N", help="as text.length")
    sides = made.add_argument_group("held-out images, if the source does not define them")
    sides.add_argument("--val-fraction", type=types.finite, default=0.1, metavar="X", help="share held out (0.1)")
    sides.add_argument("--seed", type=types.seed, default=0, help="selects them (0)")
    columns = made.add_argument_group("columns of datasets and tars with unusual names")
    for name in ("image", "text", "label"):
        columns.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {name}")
    work = made.add_argument_group("work")
    work.add_argument(
        "--shard", metavar="I/N", help="index of this process, from 0, and their number (torchrun sets both)"
    )
    work.add_argument(
        "--shard-size",
        type=types.count,
        default=DEFAULT_SHARD_SIZE,
        metavar="N",
        help=f"images per shard ({DEFAULT_SHARD_SIZE})",
    )
    work.add_argument(
        "--batch-size",
        type=types.count,
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help=f"images per batch ({DEFAULT_BATCH_SIZE})",
    )
    work.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(auto)")
    work.add_argument("--skip-broken", action="store_true", help="skip and list images that can't be decoded")
    mds = made.add_argument_group("MDS folders, read by mosaicml-streaming in a separate environment")
    mds.add_argument(
        "--streaming", type=Path, metavar="PYTHON", help="a Python that has it (default: one is installed)"
    )
    mds.add_argument("--cache-dir", type=Path, default=Path("~/.cache/microdit"), help="folder of that environment")
    made.set_defaults(command=encode)


def encode(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: if --shard or --device is wrong, or an encoder can't be opened.
        DataError: if the source can't be read.
    """
    from microdit.data.latents.writer import AutoencoderLatents, write_images
    from microdit.data.sources.hf_datasets import Columns
    from microdit.data.sources.registry import is_mds, open_source
    from microdit.encoders.autoencoder import build_autoencoder
    from microdit.encoders.config import AutoencoderConfig

    part, parts = _part(arguments.shard)
    device = _device(arguments.device)
    job = ShardJob(arguments.shard_size, arguments.batch_size, part, parts, skip_broken=arguments.skip_broken)
    if is_mds(arguments.source):
        from microdit.data.sources.mds_import import MdsOptions, convert

        options = {field.name: getattr(arguments, field.name) for field in fields(MdsOptions)}
        print_summary(*convert(MdsOptions(**options), job, device, print_progress), arguments.out)
        return
    encoder = _text_encoder(arguments, device)
    path = arguments.autoencoder or "builtin"
    autoencoder = build_autoencoder(AutoencoderConfig(path, arguments.precision), device)
    columns = Columns(arguments.image_column, arguments.text_column, arguments.label_column)
    source = open_source(arguments.source, arguments.resolution, arguments.seed, arguments.val_fraction, columns)
    latents = AutoencoderLatents(autoencoder, source.resolution, absolute_if_folder(path))
    tally = write_images(source, latents, arguments.out, job, print_progress)
    print_summary(tally, None if encoder is None else _encode_captions(arguments, encoder, job), arguments.out)


def print_summary(tally: EncodingStats, captions: int | None, out: Path) -> None:
    """Print what was written and, when it is complete, how to train on it.

    Args:
        tally: counts and seconds of this process.
        captions: number of encoded captions; None: captions were not encoded.
        out: folder of the shards.
    """
    from microdit.data.latents.reader import INDEX, open_images, settings_of, to_overrides

    if tally.images:
        rate = f"{tally.images / tally.seconds:.1f} per second"
        print(f"{tally.images:12,d}  images encoded in {tally.shards} shards, {rate}")
    if captions is not None:
        print(f"{captions:12,d}  captions encoded")
    if tally.missing:
        print(f"{len(tally.missing):12,d}  shards are not written yet by other processes: {out}")
        return
    index = open_images(out).index
    _describe(index)
    print(f"index written: {out / INDEX}; train on them with:")
    print(f"  microdit-sweep train data=latents data.path={out} {to_overrides(settings_of(index))}")


def _describe(index: Mapping[str, Any]) -> None:
    statistics, quality = index["statistics"], index["round_trip"]
    print(f"{statistics['train']['images']:12,d}  images for train, {statistics['val']['images']:,} for val")
    if index["skipped"]:
        print(f"{len(index['skipped']):12,d}  images skipped as unreadable, such as {index['skipped'][0]}")
    print(f"{index['sigma_data']['train']:12.4f}  sigma_data")
    if quality["psnr_db"] is not None:
        print(f"{quality['psnr_db']:12.2f}  dB PSNR of the round trip, over {quality['images']} images")


def _text_encoder(arguments: argparse.Namespace, device: str) -> Any:
    """Return the text encoder, or None without --captions.

    It is tried on a caption, so that an error doesn't come after the images, whose encoding takes long.
    """
    from microdit.encoders.config import TextConfig
    from microdit.encoders.text import build_text_encoder

    if not arguments.captions:
        return None
    encoder = build_text_encoder(
        TextConfig(arguments.text or "builtin", arguments.text_layer, arguments.text_length), device
    )
    encoder.encode([""])
    return encoder


def _encode_captions(arguments: argparse.Namespace, encoder: Any, job: Any) -> int:
    """Encode the captions of this process's shards that have no features yet.

    Returns:
        Their number.
    """
    from microdit.data.latents.caption_store import create_store, encode_captions, store_name, text_header
    from microdit.data.latents.shards import open_shard, unpack
    from microdit.data.latents.writer import existing_shards

    def captions_of(path: Path) -> Iterator[str]:
        shard = open_shard(path)
        text, ends = shard["captions"], shard["captions_ends"]
        return (unpack(text, ends, i) for i in range(len(ends)))

    header = text_header(encoder, path=absolute_if_folder(arguments.text or "builtin"), layer=arguments.text_layer)
    store = create_store(arguments.out / store_name(encoder.fingerprint), header)
    own = [path for k, path in sorted(existing_shards(arguments.out).items()) if k % job.parts == job.part]
    return encode_captions(store, chain.from_iterable(map(captions_of, own)), encoder)


def _part(word: str | None) -> tuple[int, int]:
    """Return the index of this process and their number, as given or by torchrun."""
    if word is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    part, slash, parts = word.partition("/")
    if not (slash and part.isdigit() and parts.isdigit()):
        raise ConfigError(f"--shard is '{word}'; it must be I/N, such as 0/4, 1/4, 2/4 and 3/4 for four processes")
    return int(part), int(parts)


def _device(word: str) -> str:
    import torch

    if word == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but no CUDA device is visible; use cpu or auto")
    if word == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def print_progress(message: str) -> None:
    """Print progress to stderr."""
    print(message, file=sys.stderr, flush=True)
