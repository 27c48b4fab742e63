"""`microdit import`: convert a checkpoint of the paper's released model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command


def add_import_command(commands: Any) -> None:
    """Add `import` to the parser's commands."""
    load = add_command(
        commands,
        "import",
        "convert a checkpoint of the paper's released model",
        ["microdit import dit_4_channel.pt --preset MicroDiT_XL_2 --out released"],
    )
    load.add_argument("checkpoint", type=Path, help=".safetensors or .pt, plain or nested under 'dit.'")
    load.add_argument("--preset", default="MicroDiT_XL_2", help="architecture (default MicroDiT_XL_2)")
    load.add_argument(
        "--config", type=Path, help="architecture as a YAML or JSON file of model keys, instead of a preset"
    )
    load.add_argument(
        "--resolution",
        type=types.count,
        metavar="PIXELS",
        help="side of its images, such as 512 (default: found in the checkpoint)",
    )
    load.add_argument("--text", metavar="PATH", help="text encoder it was trained with (default: the released one)")
    load.add_argument(
        "--text-layer", choices=("last", "penultimate"), default="last", help="layer of the text encoder (last)"
    )
    load.add_argument(
        "--autoencoder", metavar="PATH", help="autoencoder of its latents (default: the released one with its channels)"
    )
    load.add_argument("--out", type=Path, required=True, help="folder for weights, model.yaml and config.yaml")
    load.set_defaults(command=import_command, loads_torch=True)


def import_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from microdit.encoders.config import TextConfig
    from microdit.encoders.text_record import RELEASED
    from microdit.pipeline.import_released import import_model

    text = TextConfig(arguments.text or RELEASED.path, arguments.text_layer)
    place = (arguments.checkpoint, arguments.out, arguments.preset, arguments.config)
    print(import_model(*place, text=text, autoencoder=arguments.autoencoder, resolution=arguments.resolution))
