"""`microdit data encode`: latents and caption features of a source, once and for all runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from microdit.data.encode_job import BATCH, SHARD_SIZE, Job
from microdit.errors import ConfigError


def add_encode_command(kinds: Any) -> None:
    made = kinds.add_parser("encode", help="precompute latents (and caption features) for data=latents; resumable")
    made.add_argument("source", help="a folder of captioned images, as data=folder takes it")
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards and their index")
    made.add_argument("--resolution", type=int, default=256, help="side of the images, cropped and resized (256)")
    made.add_argument("--autoencoder", default="builtin", metavar="PATH", help="as autoencoder.path (builtin)")
    made.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the autoencoder (fp32)")
    text = made.add_argument_group("features of captions; else each run keeps those it needs in its cache")
    text.add_argument("--captions", action="store_true", help="keep them too: 2 bytes x tokens x width a caption")
    text.add_argument("--text", default="builtin", metavar="PATH", help="as text.path (builtin)")
    text.add_argument("--text-layer", choices=("last", "penultimate"), default="last", help="as text.layer (last)")
    text.add_argument("--text-length", type=int, metavar="N", help="as text.length")
    sides = made.add_argument_group("held-out images, where the source doesn't say which")
    sides.add_argument("--val-fraction", type=float, default=0.1, metavar="X", help="share held out (0.1)")
    sides.add_argument("--seed", type=int, default=0, help="draws them (0)")
    work = made.add_argument_group("work")
    work.add_argument("--shard", metavar="I/N", help="this is process I of N, from 0 (under torchrun: by itself)")
    work.add_argument("--shard-size", type=int, default=SHARD_SIZE, metavar="N", help=f"images a file ({SHARD_SIZE})")
    work.add_argument("--batch-size", type=int, default=BATCH, metavar="N", help=f"images at once ({BATCH})")
    work.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    work.add_argument("--skip-broken", action="store_true", help="leave out and list images that can't be decoded")
    made.set_defaults(command=encode)


def encode(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from microdit.data.encode import EncodedPictures, write_images
    from microdit.data.encoded_images import INDEX, open_images
    from microdit.data.sources.choose import Wanted, open_source
    from microdit.encoders.autoencoder import AutoencoderConfig, build_autoencoder

    part, parts = _part(arguments.shard)
    device = _device(arguments.device)
    job = Job(arguments.shard_size, arguments.batch_size, part, parts, skip_broken=arguments.skip_broken)
    encoder = _text_encoder(arguments, device)
    autoencoder = build_autoencoder(AutoencoderConfig(arguments.autoencoder, arguments.precision), device)
    source = open_source(arguments.source, Wanted(arguments.resolution, arguments.seed, arguments.val_fraction))
    pictures = EncodedPictures(autoencoder, source.resolution, _lasting(arguments.autoencoder))
    tally = write_images(source, pictures, arguments.out, job, _tell)
    if tally.images:
        rate = f"{tally.images / tally.seconds:.1f} a second"
        print(f"{tally.images:12,d}  images encoded in {tally.shards} shards, {rate}")
    if encoder is not None:
        print(f"{_encode_captions(arguments, encoder, job):12,d}  captions encoded")
    if tally.missing:
        print(f"{len(tally.missing):12,d}  shards are still to be written by other processes: {arguments.out}")
        return
    _describe(open_images(arguments.out), arguments.out)
    print(f"index written: {arguments.out / INDEX}; train on them with:")
    print(f"  microdit-sweep train data=latents data.path={arguments.out} {_sizes(arguments.out)}")


def _describe(images: Any, out: Path) -> None:
    index = images.index
    statistics, quality = index["statistics"], index["round_trip"]
    print(f"{statistics['train']['images']:12,d}  images for train, {statistics['val']['images']:,} for val")
    if index["skipped"]:
        print(f"{len(index['skipped']):12,d}  images left out as broken, such as {index['skipped'][0]}")
    print(f"{index['sigma_data']['train']:12.4f}  sigma_data")
    if quality["psnr_db"] is not None:
        print(f"{quality['psnr_db']:12.2f}  dB PSNR of the round trip, over {quality['images']} images")


def _sizes(out: Path) -> str:
    from microdit.data.encoded_images import read_index

    index = read_index(out)
    channels, side, _ = index["latents"]["shape"]
    return f"data.resolution={index['resolution']} model.in_channels={channels} model.input_size={side}"


def _text_encoder(arguments: argparse.Namespace, device: str) -> Any:
    """None where no captions are encoded. Weights that can't be loaded are found before the pictures' long work."""
    from microdit.encoders.text import TextConfig, build_text_encoder

    if not arguments.captions:
        return None
    encoder = build_text_encoder(TextConfig(arguments.text, arguments.text_layer, arguments.text_length), device)
    encoder.encode([""])
    return encoder


def _encode_captions(arguments: argparse.Namespace, encoder: Any, job: Any) -> int:
    """Captions of this process's shards that have no features yet; the number of them."""
    from microdit.data.caption_store import create_store, encode_captions, store_name, text_header
    from microdit.data.encode import shards_there
    from microdit.data.shards import open_shard, unpack

    def captions_of(path: Path) -> Iterator[str]:
        shard = open_shard(path)
        text, ends = shard["captions"], shard["captions_ends"]
        return (unpack(text, ends, i) for i in range(len(ends)))

    header = text_header(encoder, path=_lasting(arguments.text), layer=arguments.text_layer)
    store = create_store(arguments.out / store_name(encoder.fingerprint), header)
    own = [path for k, path in sorted(shards_there(arguments.out).items()) if k % job.parts == job.part]
    return encode_captions(store, chain.from_iterable(map(captions_of, own)), encoder)


def _part(word: str | None) -> tuple[int, int]:
    """This process and how many there are: as given, or as torchrun says."""
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


def _lasting(path: str) -> str:
    """A path that means the same from another folder."""
    folder = Path(path).expanduser()
    return str(folder.absolute()) if folder.is_dir() and path not in ("builtin", "pixels") else path


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
