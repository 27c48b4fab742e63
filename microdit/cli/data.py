"""`microdit data`: show a dataset, or build one."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.cli.encode import add_encode_command
from microdit.common.command_line import add_command

SHOW = "show"
KINDS = (SHOW, "encode", "cifar-captions", "cifar10")
CACHE = Path("~/.cache/microdit")


def add_data_commands(commands: Any) -> None:
    """Add `data` and its subcommands to the parser's commands."""
    data = add_command(
        commands,
        "data",
        "show a dataset, build cifar-captions or cifar10, or encode images",
        ["microdit data config.yaml --split val --out sheet.png", "microdit data encode photos --out latents"],
    )
    kinds = data.add_subparsers(required=True, metavar="CONFIG | encode | cifar-captions | cifar10")
    add_encode_command(kinds)
    _add_show(kinds)
    _add_cifar_captions(kinds)
    _add_cifar10(kinds)


def with_show(argv: Sequence[str]) -> list[str]:
    """Return `argv` with `show` inserted if it names no command.

    `microdit data CONFIG` means `microdit data show CONFIG`.
    """
    words = list(argv)
    if words[:1] == ["data"] and words[1:2] and words[1] not in (*KINDS, "-h", "--help"):
        words.insert(1, SHOW)
    return words


def _add_show(kinds: Any) -> None:
    show = add_command(
        kinds,
        SHOW,
        "print captions and write a contact sheet; `show` is optional",
        ["microdit data config.yaml --split val --count 24 --out sheet.png"],
    )
    show.add_argument("config", type=Path, help="a complete configuration")
    show.add_argument("--split", default="train", choices=("train", "val", "composition"), help="(train)")
    show.add_argument("--count", type=types.count, default=24, metavar="N", help="images shown (24)")
    show.add_argument("--out", type=Path, default=Path("data.png"), help="the contact sheet (data.png)")
    show.set_defaults(command=_show)


def _add_cifar_captions(kinds: Any) -> None:
    from microdit.data.cifar_captions.config import WORDS_FILE, Fetch, Filters

    made = add_command(
        kinds,
        "cifar-captions",
        "select photographs of the CIFAR-10 classes from COYO-700M's metadata, and download them",
        ["microdit data cifar-captions --coyo coyo/ --out cifar_captions --per-class 1000"],
    )
    made.add_argument("--coyo", required=True, help="folder, glob or file of parquet metadata, or a hub dataset's name")
    made.add_argument("--out", type=Path, required=True, help="folder for the selection, its card and the images")
    made.add_argument("--seed", type=types.seed, default=0, help="selects the rows that are kept (0)")
    made.add_argument("--per-class", type=types.count, metavar="N", help="most rows per class (default: all)")
    made.add_argument("--balance", action="store_true", help="cut all classes to the size of the smallest")
    made.add_argument("--val-fraction", type=types.finite, default=0.05, metavar="X", help="share held out (0.05)")
    made.add_argument(
        "--words", type=Path, default=WORDS_FILE, metavar="FILE", help="another list of classes and their words"
    )
    filters = made.add_argument_group("filters, both ends inclusive; 'off' disables one")
    for field in dataclasses.fields(Filters):
        if "help" in field.metadata:
            kind = _whole_or_off if isinstance(field.default, int) else _number_or_off
            _add_setting(filters, field, kind)
    filters.add_argument(
        "--several",
        choices=("first", "drop"),
        default="first",
        help="caption with several classes: label it with the first, or drop it (first)",
    )
    fetch = made.add_argument_group("download, by img2dataset in a separate environment")
    fetch.add_argument("--select-only", action="store_true", help="download nothing")
    fetch.add_argument(
        "--img2dataset", type=Path, metavar="PYTHON", help="a Python that has it (default: one is installed)"
    )
    fetch.add_argument("--cache-dir", type=Path, default=CACHE, help=f"where it is installed ({CACHE})")
    for field in dataclasses.fields(Fetch):
        _add_setting(fetch, field, int)
    made.set_defaults(command=_cifar_captions)


def _add_cifar10(kinds: Any) -> None:
    made = add_command(
        kinds,
        "cifar10",
        "convert CIFAR-10 to a folder of images with captions from templates",
        ["microdit data cifar10 --root downloads --download --out cifar10"],
    )
    made.add_argument("--root", type=Path, required=True, help="folder of cifar-10-binary.tar.gz")
    made.add_argument("--download", action="store_true", help="download it into --root first")
    made.add_argument("--out", type=Path, required=True, help="new folder for images and metadata.jsonl")
    made.add_argument("--seed", type=types.seed, default=0, help="selects the templates (0)")
    made.set_defaults(command=_cifar10)


def _add_setting(group: Any, field: dataclasses.Field[Any], kind: Callable[[str], Any]) -> None:
    text = f"{field.metadata['help']} (default {field.default})"
    group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N", help=text)


def _whole_or_off(word: str) -> int | None:
    return None if word == "off" else int(word)


def _number_or_off(word: str) -> float | None:
    return None if word == "off" else float(word)


def _show(arguments: argparse.Namespace) -> None:
    import numpy as np

    from microdit.config.schema import load_config
    from microdit.data.registry import build_dataset
    from microdit.pipeline.generate import grid, save_png

    dataset = build_dataset(load_config(arguments.config).data, arguments.split)
    items = [dataset[i] for i in range(min(arguments.count, len(dataset)))]
    save_png(grid(np.stack([item.image for item in items]), columns=6), arguments.out)
    for number, item in enumerate(items):
        print(f"{number:3d}  {item.caption}")
    print(
        f"{len(dataset)} images in split '{arguments.split}', fingerprint {dataset.fingerprint[:16]}: {arguments.out}"
    )


def _cifar_captions(arguments: argparse.Namespace) -> None:
    from microdit.data.cifar_captions.config import Fetch, Filters, Request
    from microdit.data.cifar_captions.download import IMAGES, download
    from microdit.data.cifar_captions.select import select

    def settings(of: type[Any]) -> dict[str, Any]:
        return {
            field.name: getattr(arguments, field.name) for field in dataclasses.fields(of) if field.name != "filters"
        }

    fetch = Fetch(**settings(Fetch))
    card = select(Request(**settings(Request), filters=Filters(**settings(Filters))), arguments.out)
    for name, count in card.dropped.items():
        print(f"{count:12,d}  dropped: {name}")
    for name, splits in card.chosen.items():
        print(f"{sum(splits.values()):12,d}  {name} ({splits['val']:,} for val)")
    print(f"{card.size:12,d}  chosen of {card.rows_read:,}, fingerprint {card.fingerprint[:16]}: {arguments.out}")
    if arguments.select_only:
        return
    report = download(arguments.out, card, fetch, arguments.img2dataset, arguments.cache_dir)
    for why, count in report["failed"].items():
        print(f"{count:12,d}  failed: {why}")
    print(f"{report['succeeded']:12,d}  images of {report['urls']:,} urls: {arguments.out / IMAGES}")
    print(f"train on them with: microdit-sweep train data=folder data.path={arguments.out / IMAGES}")


def _cifar10(arguments: argparse.Namespace) -> None:
    from microdit.data.cifar10 import write_cifar10

    counts = write_cifar10(arguments.root, arguments.out, arguments.seed, arguments.download)
    print(f"{counts['train']:,} images for train, {counts['val']:,} for val: {arguments.out}")
    print(f"train on them with: microdit-sweep train data=folder data.path={arguments.out} data.resolution=32")
