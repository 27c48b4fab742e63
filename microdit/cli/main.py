"""Run the `microdit` command: configurations to weights, images and scores."""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence

from microdit.cli.data import add_data_commands, with_show
from microdit.cli.evaluate import add_evaluate_command
from microdit.cli.finetune import add_finetune_command, finetune_command
from microdit.cli.import_checkpoint import add_import_command
from microdit.cli.sample import add_sample_command
from microdit.cli.train import add_train_command, train_command
from microdit.common.command_line import Parser, make_parser, run_command
from microdit.common.process.distributed import destroy_process_group, is_main
from microdit.common.process.waiting import waiting

COMMANDS = (
    add_train_command,
    add_finetune_command,
    add_sample_command,
    add_evaluate_command,
    add_data_commands,
    add_import_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after the program's name; None: those of the process.

    Returns:
        0; 2 for an error of the user; 130 if interrupted. Of several processes (torchrun), one prints the error.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_command(
        "microdit",
        lambda: _run(words),
        interrupted="interrupted; the same command resumes from the last checkpoint",
    )


def _run(words: Sequence[str]) -> int:
    arguments = _parsed(with_show(words))
    if getattr(arguments, "loads_torch", False):
        _load(arguments.command in (train_command, finetune_command))
    arguments.command(arguments)
    destroy_process_group()
    return 0


def _load(first_line: bool) -> None:
    """Import PyTorch, which takes up to a minute on a busy machine."""
    if first_line and is_main() and "torch" not in sys.modules:
        print("loading PyTorch", file=sys.stderr, flush=True)
    atexit.register(gc.freeze)  # at exit, Python would collect all of PyTorch's objects, which takes seconds
    with waiting("PyTorch to load"):
        import microdit.pipeline.train_and_evaluate  # noqa: F401


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments.

    Unlike in plain argparse, key=value words may stand anywhere among the options.
    """
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    if others and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in others)):
        getattr(arguments, "parser", parser).reject_unknown(others)
    if others:
        arguments.overrides += others
    return arguments


def _parser() -> Parser:
    examples = ("microdit train config.yaml", 'microdit sample runs/train/RUN "a cat" --out cat.png')
    parser = make_parser("microdit", "Train, sample and score micro-budget diffusion transformers.", examples)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in COMMANDS:
        add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
