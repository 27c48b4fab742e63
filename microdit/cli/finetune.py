"""`microdit finetune`: resume from a finished run on a folder of captioned images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.cli.train import train_and_print
from microdit.common.command_line import add_command
from microdit.common.process.distributed import is_main


def add_finetune_command(commands: Any) -> None:
    """Add `finetune` to the parser's commands."""
    tune = add_command(
        commands,
        "finetune",
        "continue the training of a finished run on a folder of captioned images",
        ["microdit finetune runs/first --data photos --out runs/tuned optimizer.lr=1e-4"],
    )
    tune.add_argument("run", type=Path, help="folder of the run to start from; it is not changed")
    tune.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="8 or more captioned images")
    tune.add_argument("--steps", type=types.count, metavar="N", help="optimizer steps (300)")
    tune.add_argument("--out", type=Path, required=True, help="folder of the new run")
    tune.add_argument("overrides", nargs="*", metavar="key=value", help="any setting, such as optimizer.lr=1e-4")
    tune.set_defaults(command=finetune_command, loads_torch=True)


def finetune_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from microdit.pipeline.finetune import finetune_config, summary

    config = finetune_config(arguments.run, arguments.data, arguments.out, arguments.steps, arguments.overrides)
    if is_main():
        print(summary(config), file=sys.stderr)
    train_and_print(config)
    if is_main():
        print(f'next: microdit sample {arguments.out} "a caption"')
