"""`microdit sample`: generate images of captions with a trained run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command
from microdit.common.errors import ConfigError
from microdit.common.files.text import check_characters


def add_sample_command(commands: Any) -> None:
    """Add `sample` to the parser's commands."""
    sample = add_command(
        commands,
        "sample",
        "generate images of captions with a trained run",
        ['microdit sample runs/first "a cat" "two dogs" --count 4 --guidance 2 --out samples.png'],
    )
    sample.add_argument("run", type=Path, help="folder of a run or an imported model, or a .safetensors file")
    sample.add_argument("captions", nargs="+", help="each gives one row of images")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="the image file (samples.png)")
    sample.add_argument("--count", type=types.count, default=4, metavar="N", help="images per caption (4)")
    sample.add_argument("--seed", type=types.seed, default=0, help="seed of the noise (0)")
    sample.add_argument("--steps", type=types.count, metavar="N", help="sampler steps (default: the run's)")
    sample.add_argument("--guidance", type=types.finite, help="classifier-free guidance (default: the run's)")
    sample.add_argument(
        "--guidance-by",
        choices=("caption", "path_drop"),
        help="what the weaker prediction omits (default: the run's)",
    )
    sample.add_argument(
        "--guidance-interval",
        type=types.level,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide only noise levels LOW < sigma <= HIGH (default: the run's)",
    )
    sample.set_defaults(command=sample_command, loads_torch=True)


def sample_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import numpy as np

    from microdit.pipeline.generate import grid, save_png
    from microdit.pipeline.pretrained import Pipeline

    for number, caption in enumerate(arguments.captions, 1):
        check_characters(caption, f"caption {number}", ConfigError)
    interval = arguments.guidance_interval
    images = Pipeline.from_pretrained(arguments.run)(
        arguments.captions,
        num_samples=arguments.count,
        steps=arguments.steps,
        guidance=arguments.guidance,
        guidance_by=arguments.guidance_by,
        guidance_interval=None if interval is None else (interval[0], interval[1]),
        seed=arguments.seed,
    )
    save_png(grid(np.stack([np.asarray(image) for image in images]), arguments.count), arguments.out)
    print(f"{len(images)} images, one row per caption: {arguments.out}")
