"""`microdit train`: train and score one complete config.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdit.common.command_line import add_command
from microdit.common.process.distributed import is_main

if TYPE_CHECKING:
    from microdit.config.schema import Config


def add_train_command(commands: Any) -> None:
    """Add `train` to the parser's commands."""
    train = add_command(
        commands,
        "train",
        "train and score one complete config.yaml",
        ["microdit-sweep config scale=smoke > config.yaml && microdit train config.yaml --out runs/first"],
    )
    train.add_argument("config", type=Path, help="a complete configuration, such as a run stores")
    train.add_argument("--out", type=Path, help="output folder instead of the configuration's output_dir")
    train.set_defaults(command=train_command, loads_torch=True)


def train_command(arguments: argparse.Namespace) -> None:
    """Run the command."""
    import dataclasses

    from microdit.config.schema import load_config

    config = load_config(arguments.config)
    if arguments.out is not None:
        config = dataclasses.replace(config, output_dir=str(arguments.out))
    train_and_print(config)


def train_and_print(config: Config) -> None:
    """Train `config` and print its final metrics."""
    from microdit.pipeline.train_and_evaluate import run
    from microdit.training.graceful_stop import handle_stop_signals

    with handle_stop_signals() as stop:
        metrics = run(config, progress=True, stop=stop)
    if not is_main():
        return
    for name, value in metrics.items():
        print(f"{name:24s} {value:.6g}")
    print(f"weights, samples and metrics are in {config.output_dir}")
