"""The `microdit` command: resolved configurations and files in, weights, pictures and scores out."""

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
from microdit.common.errors import MicroditError
from microdit.common.files.atomic import file_trouble
from microdit.common.process.distributed import destroy_process_group, is_main, should_report_error
from microdit.common.process.terminal import safely
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
    """Return the exit code: 0, 2 for an error of the user's, 130 when interrupted.

    Of several processes (torchrun), one prints the error.
    """
    return safely(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parsed(with_show(sys.argv[1:] if argv is None else argv))
    try:
        if getattr(arguments, "loads_torch", False):
            _load(arguments.command in (train_command, finetune_command))
        arguments.command(arguments)
    except MicroditError as error:
        if should_report_error():
            print(f"microdit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that can't be written, a name that no file system takes
        if should_report_error():
            print(f"microdit: {file_trouble(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if should_report_error():
            print("microdit: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception:
        if should_report_error():
            raise
        return 1
    destroy_process_group()
    return 0


def _load(first_line: bool) -> None:
    """Import PyTorch; a busy machine needs most of a minute for it."""
    if first_line and is_main() and "torch" not in sys.modules:
        print("loading PyTorch", file=sys.stderr, flush=True)
    atexit.register(gc.freeze)  # at exit, Python would collect all of PyTorch's objects, which takes seconds
    with waiting("PyTorch to load"):
        import microdit.pipeline.train_and_evaluate  # noqa: F401


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; key=value words may stand anywhere among a command's options, which argparse alone refuses."""
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    if others and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        arguments.overrides += others
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="microdit", description="Micro-budget diffusion transformers: the core.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in COMMANDS:
        add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
