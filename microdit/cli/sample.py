"""`microdit sample`: draw captions with a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command
from microdit.common.errors import ConfigError


def add_sample_command(commands: Any) -> None:
    sample = add_command(
        commands,
        "sample",
        "generate images of captions with a trained run",
        ['microdit sample runs/first "a cat" "two dogs" --count 4 --guidance 2 --out samples.png'],
    )
    sample.add_argument("run", type=Path, help="a run's output folder")
    sample.add_argument("captions", nargs="+", help="one picture row per caption")
    sample.add_argument("--out", type=Path, default=Path("samples.png"))
    sample.add_argument("--count", type=types.count, default=4, help="pictures per caption (default 4)")
    sample.add_argument("--seed", type=types.seed, default=0)
    sample.add_argument("--steps", type=types.count, help="sampler steps instead of the run's own")
    sample.add_argument("--guidance", type=types.finite, help="guidance instead of the run's own")
    sample.add_argument(
        "--guidance-by",
        choices=("caption", "path_drop"),
        help="what the weaker prediction lacks, instead of the run's own",
    )
    sample.add_argument(
        "--guidance-interval",
        type=types.level,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guidance only where LOW < sigma <= HIGH, instead of the run's own",
    )
    sample.set_defaults(command=sample_command, loads_torch=True)


def sample_command(arguments: argparse.Namespace) -> None:
    import dataclasses

    from microdit.common.files.text import check_characters
    from microdit.diffusion import GuidanceInterval
    from microdit.pipeline.generate import generate, grid, save_png
    from microdit.pipeline.pretrained import load_run

    for number, caption in enumerate(arguments.captions, 1):
        check_characters(caption, f"caption {number}", ConfigError)
    trained = load_run(arguments.run)
    keys = ("steps", "guidance", "guidance_by")
    changes = {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}
    if arguments.guidance_interval is not None:
        changes["guidance_interval"] = GuidanceInterval(*arguments.guidance_interval)
    sampler = dataclasses.replace(trained.config.sampler, **changes)
    dataclasses.replace(trained.config, sampler=sampler)  # refuses what doesn't go with the network
    features = trained.text_encoder.encode(arguments.captions).repeat_interleave(arguments.count, 0)
    pictures = generate(trained.denoiser, trained.autoencoder, features, sampler, arguments.seed)
    save_png(grid(pictures, arguments.count), arguments.out)
    print(f"{len(pictures)} pictures, a row per caption: {arguments.out}")
