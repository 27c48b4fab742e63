"""Provide the common parser, option syntax and exit handling of the commands.

Options are written `--name value`, settings of a recipe `key=value`. `microdit-sweep` and `microdit-report` also read
their own options as `name=value`, as Hydra's users write them. Every command ends with 0, with 2 and one line on stderr
for an error that the user can fix, with 130 if it was interrupted, and with 141 if the reader of its output has gone.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from microdit.common.errors import MicroditError, named, nearest
from microdit.common.files.atomic import file_trouble
from microdit.common.process.distributed import should_report_error
from microdit.common.process.terminal import safely

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes
SWITCH = "true|false"  # metavar of an option that is on or off
SHELLS = ("bash", "zsh", "tcsh")
Explain = Callable[[Exception], tuple[str, int] | None]  # error -> its one line and the exit code, or None


class UsageError(MicroditError):
    """Report a command line that can't be read.

    The message has the word and the nearest valid one.
    """


class Parser(argparse.ArgumentParser):
    """Parse arguments; an error raises UsageError with the nearest name.

    argparse would print the usage and exit instead.
    """

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse calls this for each error of the user.

        Args:
            message: what is wrong.

        Returns:
            Never.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} ({self.prog} --help shows all)")

    def reject_unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise UsageError for words that no option reads, naming the nearest option.

        Args:
            words: the unknown part of the command line, at least one word.

        Returns:
            Never.
        """
        options = [option for action in self._actions for option in action.option_strings]
        hint = f"; {nearest(words[0].partition('=')[0], options)}" if words[0].startswith("-") else ""
        self.error(f"unrecognized arguments: {' '.join(map(named, words))}{hint}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed arguments; reject unknown options.

        Args:
            args: the words; None: those of the process.
            namespace: filled and returned if given.

        Raises:
            UsageError: if an argument is invalid or unknown; suggests the nearest.
        """
        arguments, others = self.parse_known_args(args, namespace)
        if others:
            getattr(arguments, "parser", self).reject_unknown(others)
        return arguments

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own ignores a closed pipe

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice '{named(value)}'; {nearest(value, action.choices)}")


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("microdit")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"{parser.prog} {found}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, __: Any = None) -> None:
        import shtab

        _complete_paths(parser)
        print(shtab.complete(parser, shell))
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let tab completion suggest files for each argument of type Path."""
    for action in parser._actions:
        if action.type is Path and not hasattr(action, "complete"):
            action.complete = "file"  # type: ignore[attr-defined]
        for inner in action.choices.values() if isinstance(action.choices, dict) else ():
            _complete_paths(inner)


def make_parser(prog: str, description: str, examples: Iterable[str]) -> Parser:
    """Build a program's parser with --help, --version and --print-completion.

    Args:
        prog: the program's name.
        description: what it is for; line ends are kept.
        examples: complete command lines for the end of the help.

    Returns:
        The parser, without other arguments.
    """
    parser = Parser(
        prog=prog, description=description, epilog=_epilog(examples), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")
    text = f'print a script for tab completion; for bash: eval "$({prog} --print-completion bash)"'
    parser.add_argument("--print-completion", action=_PrintCompletion, choices=SHELLS, metavar="SHELL", help=text)
    return parser


def add_command(commands: Any, name: str, summary: str, examples: Iterable[str]) -> Parser:
    """Add a subcommand to a program.

    Args:
        commands: returned by the program's `add_subparsers`.
        name: the subcommand.
        summary: one line for both helps, lower case and without a full stop.
        examples: complete command lines for the end of the help.

    Returns:
        The subcommand's parser.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(parser=parser)
    return parser


def _epilog(examples: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in examples)])


def add_settings(
    parser: Parser, options: Mapping[str, tuple[str, str]], values: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Add options that may also be written `name=value`, each only once.

    Args:
        parser: the parser of a program or subcommand.
        options: by name, the placeholder of the value in the help, and the option's help. `tracking_uri` is read as
            `--tracking-uri` and as `tracking_uri=`. With SWITCH a bare `--name` means `--name=true`.
        values: values that tab completion suggests, by name; other values are allowed.

    Returns:
        `values` of all options, those of switches included.
    """
    known = {
        name: SWITCH.split("|") if metavar == SWITCH else values.get(name, ()) for name, (metavar, _) in options.items()
    }
    for name, (metavar, text) in options.items():
        action: Any = parser.add_argument(
            _option(name), dest=name, metavar=metavar, default=argparse.SUPPRESS, action=_StoreOnce, help=text
        )
        if known[name]:
            action.complete = completion_of(f"_microdit_{name}", known[name])
    return known


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _StoreOnce(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, found: Any, value: Any, __: Any = None) -> None:
        if hasattr(found, self.dest):
            before = getattr(found, self.dest)
            parser.error(f"'{self.dest}={named(value)}': {self.dest} is given already, as '{named(before)}'")
        setattr(found, self.dest, value)


def completion_of(function: str, values: Sequence[str]) -> dict[str, Any]:
    """Return shtab's completion of an option.

    Args:
        function: name of the function in bash's script.
        values: suggested values.
    """
    listed = " ".join(values)
    return {
        "bash": function,
        "zsh": f"({listed})",
        "tcsh": f"({listed})",
        "preamble": {"bash": f'{function}() {{ compgen -W "{listed}" -- "$1"; }}'},
    }


def completion_of_words(
    function: str, values: Mapping[str, Sequence[str]], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return shtab's completion of `name=value` words.

    Args:
        function: name of the function in bash's script.
        values: values per name; bash suggests them after `name=`.
        others: words without `=`.
    """
    names = " ".join([*others, *(f"{name}=" for name in values)])
    cases = "\n".join(
        f'    {name}) compgen -W "{" ".join(known)}" -- "$word";;' for name, known in values.items() if known
    )
    bash = f"""\
{function}() {{
  local word="$1" name=""
  if [[ "$word" == "=" ]]; then name="${{COMP_WORDS[COMP_CWORD-1]}}"; word=""
  elif [[ "${{COMP_WORDS[COMP_CWORD-1]}}" == "=" ]]; then name="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
  case "$name" in
    "") compgen -W "{names}" -- "$word";;
{cases}
  esac
}}"""
    return {"bash": function, "zsh": f"({names})", "tcsh": f"({names})", "preamble": {"bash": bash}}


def split_words(parser: Parser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command line into the parser's options and other `key=value` words.

    Args:
        parser: the parser whose options may be written `name=value`.
        words: the command line after the subcommand.

    Returns:
        Words for `parser.parse_args`, with `name=value` as `--name=value`; and the other key=value words.
    """
    actions = {option: action for action in parser._actions for option in action.option_strings}
    options: list[str] = []
    settings: list[str] = []
    awaited: argparse.Action | None = None  # the option whose value comes next
    for word in words:
        key, sep, value = word.partition("=")
        if awaited is not None and awaited.metavar == SWITCH and word not in SWITCH.split("|"):
            options.append("true")
            awaited = None
        if awaited is not None or word.startswith("-") or not sep:
            options.append(word)
        elif _option(key) in actions:
            options.append(f"{_option(key)}={value}")
        else:
            settings.append(word)
        takes_value = awaited is None and word in actions and isinstance(actions[word], _StoreOnce)
        awaited = actions[word] if takes_value else None
    if awaited is not None and awaited.metavar == SWITCH:
        options.append("true")
    return options, settings


def run_command(
    prog: str,
    body: Callable[[], int],
    explain: Explain = lambda error: None,
    interrupted: str = "interrupted",
    mask: Callable[[str], str] = str,
) -> int:
    """Run a command and return its exit code.

    Output is made safe for any terminal, and each error is printed as one line.

    Args:
        prog: the program's name, printed before each error.
        body: runs the command and returns the exit code.
        explain: returns the line and the exit code of an error, or None for the default.
        interrupted: printed after Ctrl-C.
        mask: removes passwords from printed text.

    Returns:
        The code of `body`; 2 for a MicroditError or an OSError; 130 after Ctrl-C; 141 for a closed pipe; 1 with a
        traceback for any other error. Of several processes, one prints.
    """
    return safely(lambda: _guarded(prog, body, explain, interrupted, mask))


def _guarded(prog: str, body: Callable[[], int], explain: Explain, interrupted: str, mask: Callable[[str], str]) -> int:
    def report(line: str) -> None:
        if should_report_error():
            print(f"{prog}: {mask(line)}", file=sys.stderr)

    try:
        return body()
    except SystemExit as end:  # --help, --version
        if isinstance(end.code, str):
            raise
        return end.code or 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        report(interrupted)
        return INTERRUPTED
    except Exception as error:
        if (found := explain(error)) is not None:
            report(found[0])
            return found[1]
        if isinstance(error, (MicroditError, OSError)):
            report(str(error) if isinstance(error, MicroditError) else file_trouble(error))
            return USER_ERROR
        if should_report_error():
            print(mask(traceback.format_exc()), end="", file=sys.stderr)
        return FAILED
