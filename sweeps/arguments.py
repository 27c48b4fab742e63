"""Parse the command line of `microdit-sweep`: commands, options, and overrides of the recipe."""

from __future__ import annotations

import difflib
import math
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from microdit.common.command_line import (
    SWITCH,
    Parser,
    add_command,
    add_settings,
    completion_of_words,
    make_parser,
    split_words,
)
from microdit.common.errors import ConfigError, named, nearest
from microdit.common.files.paths import group_options
from microdit.common.files.yaml_text import load_yaml
from microdit.common.limits import Range
from microdit.common.stores.sqlite_uri import check_utf8
from sweeps.config.override_quoting import quoted_path
from sweeps.tracking.uris import absolute_uri, default_queue_uri, default_uri

T = TypeVar("T", int, float)
LAUNCHER = "hydra.launcher."
RUN = "run"  # the command that may be left out
MULTIRUN = ("-m", "--multirun")

OPTIONS = {  # name: (what stands for its value, help)
    "study": ("NAME|FILE.yaml", "a study of experiments/study, or your own file"),
    "scale": ("NAME", "smoke | demo | gpu | paper (default demo)"),
    "seeds": ("[0,1]", "replace the study's own seeds"),
    "workers": ("N", "trials at a time (default: one per GPU, else one per CPU core)"),
    "launcher": (
        "NAME",
        "local | joblib | submitit_local | submitit_slurm | ray (experiments/launcher; its settings as "
        "hydra.launcher.key=value); the same command given again, also on another machine, adds workers",
    ),
    "workers_per_gpu": ("N", "trials that share a GPU (default 1)"),
    "max_retries": ("N", "retries of a failed trial if the failure may be temporary (default 1)"),
    "fail_fast": (SWITCH, "true: stop at the first failure"),
    "reuse": (SWITCH, "false: run finished trials again"),
    "root": ("FOLDER", "folder of outputs and of the default stores (default runs)"),
    "tracking_uri": ("URI", "MLflow store (default: MLFLOW_TRACKING_URI, else sqlite under root)"),
    "artifacts_uri": (
        "URI",
        "files of new MLflow experiments: a folder or s3://... (default: the server's choice for an http:// store, "
        "else mlartifacts under root)",
    ),
    "queue_uri": ("URI", "Optuna storage, such as postgresql://... (default: OPTUNA_STORAGE, else sqlite under root)"),
    "accelerator": ("NAME", "estimate time and money on one of experiments/accelerators.yaml, such as h100"),
    "utilisation": ("SHARE", "share of the accelerator's peak that training reaches (default 0.35)"),
    "usd_per_hour": ("N", "price of the accelerator instead of the file's"),
    "measure": (SWITCH, "false: measure no training steps on this machine"),
    "wide": (SWITCH, "true: print all columns of tables, however wide"),
    "port": ("N", "port of the web page (default 5000)"),
}
EVERYWHERE = ("scale", "reuse", "root", "tracking_uri", "artifacts_uri", "queue_uri")
RUNNING = ("workers", "launcher", "workers_per_gpu", "max_retries", "fail_fast")
ESTIMATE = ("accelerator", "utilisation", "usd_per_hour", "measure")


@dataclass(frozen=True)
class Command:
    """What one command reads, and how its help describes it."""

    summary: str
    options: tuple[str, ...]
    examples: tuple[str, ...]
    overrides: bool = False  # whether key=value words may change the recipe


COMMANDS = {
    RUN: Command(
        "run a study and record every trial in MLflow; `run` is optional",
        ("study", "seeds", *RUNNING, "wide"),
        (
            "microdit-sweep study=masking_ratio scale=smoke",
            "microdit-sweep study=masking_ratio workers=4 training.steps=3000",
            "microdit-sweep study=masking_ratio scale=gpu launcher=submitit_slurm hydra.launcher.partition=gpu",
        ),
        overrides=True,
    ),
    "plan": Command(
        "print a study's trials, their state and their cost; train nothing",
        ("study", "seeds", "workers", *ESTIMATE, "wide"),
        ("microdit-sweep plan study=all scale=gpu", "microdit-sweep plan study=[masking_ratio,mixer_size]"),
        overrides=True,
    ),
    "status": Command(
        "print the state of each trial of a study",
        ("study", "seeds", "wide"),
        ("microdit-sweep status study=masking_ratio scale=demo",),
    ),
    "train": Command(
        "train one run, recorded in experiment microdit/train; with -m all combinations of listed values",
        (*RUNNING, "wide"),
        ("microdit-sweep train scale=smoke optimizer.lr=1e-3", "microdit-sweep train -m optimizer.lr=1e-3,3e-3"),
        overrides=True,
    ),
    "config": Command(
        "print the complete config.yaml that 'microdit train' reads",
        (),
        ("microdit-sweep config scale=demo training.steps=3000 > config.yaml",),
        overrides=True,
    ),
    "relocate": Command(
        "update the paths in the stores after their folder was moved",
        (),
        ("microdit-sweep relocate root=runs",),
    ),
    "ui": Command("open MLflow's web page of the runs", ("port",), ("microdit-sweep ui port=5001",)),
}

DESCRIPTION = """\
Run studies: Hydra configurations to trials, recorded in MLflow.

microdit-sweep study=NAME [scale=demo] [key=value ...]   run a study
microdit-sweep COMMAND [--help] [key=value ...]          one of the commands below

Options are written name=value or --name value. Every other key=value overrides experiments/base.yaml for all arms,
such as training.steps=3000."""


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line: the command, its own options, and overrides of the recipe."""

    command: str
    own: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    multirun: bool = False

    @property
    def root(self) -> Path:
        """Return the folder of outputs and default stores."""
        return Path(str(self.own.get("root") or "runs"))

    @property
    def scale(self) -> str:
        """Return the name of the scale."""
        return str(self.own.get("scale") or "demo")

    def uri(self) -> str:
        """Return the absolute URI of the MLflow store."""
        given = self.own.get("tracking_uri")
        return absolute_uri(str(given)) if given else default_uri(self.root)

    def queue_uri(self) -> str:
        """Return the absolute URI of the Optuna storage."""
        given = self.own.get("queue_uri")
        return absolute_uri(str(given), "queue_uri") if given else default_queue_uri(self.root)

    def number(self, key: str, default: T, allowed: Range) -> T:
        """Return the value of a numeric option.

        Args:
            key: name of the option.
            default: the value if the option is not given; if it is a whole number, so must be the option.
            allowed: the accepted numbers.

        Raises:
            ConfigError: if the value is not such a number.
        """
        value = self.own.get(key, default)
        whole = isinstance(default, int)
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value not in allowed:
            raise ConfigError(f"{key}={value}: it must be a {'whole ' if whole else ''}number, {allowed}")
        return type(default)(value)

    def switch(self, key: str, default: bool) -> bool:
        """Return the value of an option that is true or false.

        Args:
            key: name of the option.
            default: the value if the option is not given.

        Raises:
            ConfigError: if the value is neither.
        """
        value = self.own.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value}: it must be true or false")
        return value


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Return the parsed command line.

    Args:
        words: without the program's name; the command and the options may come in any order.

    Raises:
        ConfigError: if a word is neither a command nor an option nor key=value, or would be ignored.
        UsageError: if argparse rejects an option.
    """
    for word in words:
        try:
            check_utf8(word)
        except ConfigError as error:
            raise ConfigError(f"command line: {error}") from None
    parser, parsers = _parsers()
    name = next((word for word in words if word in COMMANDS), "")
    rest = list(words)
    if name:
        rest.remove(name)
    elif any(word in ("-h", "--help", "help") for word in words):
        parser.parse_args(["--help"])
    elif words[0].startswith(("--version", "--print-completion")):
        parser.parse_args(words)
    name = name or RUN
    command = COMMANDS[name]
    options, overrides = split_words(parsers[name], rest)
    parsed = vars(parsers[name].parse_args(options))
    own = {key: _value(key, parsed[key]) for key in OPTIONS if key in parsed}
    multirun = parsed.get("multirun", False)
    for word in parsed["words"]:
        raise ConfigError(f"'{named(word)}' is neither a command nor key=value; {nearest(word, (*COMMANDS, *OPTIONS))}")
    _check_overrides(name, command, overrides)
    _check_combination(name, own, overrides, multirun)
    return CommandLine(name, own, overrides if multirun else [quoted_path(word) for word in overrides], multirun)


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    examples = [COMMANDS[RUN].examples[0], COMMANDS["plan"].examples[0], COMMANDS["ui"].examples[0]]
    parser = make_parser("microdit-sweep", DESCRIPTION + "\n\noptions:\n" + _listed(OPTIONS), examples)
    made = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    parsers = {}
    for name, command in COMMANDS.items():
        own = parsers[name] = add_command(made, name, command.summary, command.examples)
        options = {key: text for key, text in OPTIONS.items() if key in (*command.options, *EVERYWHERE)}
        values = add_settings(own, options, {key: group_options(key) for key in ("study", "scale", "launcher")})
        text = "options as name=value" + (", and overrides of the recipe" if command.overrides else "")
        words: Any = own.add_argument("words", nargs="*", metavar="key=value", help=text)
        words.complete = completion_of_words(f"_microdit_words_{name}", values)
        own.add_argument(
            *MULTIRUN, action="store_true", help="combine comma-separated values" if name == "train" else SUPPRESS
        )
    return parser, parsers


def _listed(options: dict[str, tuple[str, str]]) -> str:
    import textwrap

    lines = []
    for name, (metavar, text) in options.items():
        wrapped = textwrap.wrap(text, 74)
        lines.append(f"  {f'{name}={metavar}':22s} {wrapped[0]}")
        lines += [" " * 25 + line for line in wrapped[1:]]
    return "\n".join(lines)


def _value(key: str, text: str) -> Any:
    try:
        value = load_yaml(text, f"'{named(key)}={named(text)}'")
    except ConfigError:
        value = text
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"'{key}={text}': it must be a finite number")
    if value is None or value == "":
        raise ConfigError(f"'{key}={text}': it needs a value")
    return value


def _form(name: str) -> str:
    return "microdit-sweep " + ("study=..." if name == RUN else name)


def _check_overrides(name: str, command: Command, overrides: Sequence[str]) -> None:
    """Reject key=value words that the command would ignore, and misspelled options."""
    for word in overrides:
        key = word.partition("=")[0]
        if key in OPTIONS:
            raise ConfigError(f"'{key}' is not an option of {_form(name)}")
        if not command.overrides:
            raise ConfigError(f"'{named(word)}' is not an option of {_form(name)}; it reads no settings of the recipe")
        if key != "seed" and "." not in key and difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.8):
            raise ConfigError(f"unknown key '{key}'; {nearest(key, OPTIONS)}")


def _check_combination(name: str, own: dict[str, Any], overrides: Sequence[str], multirun: bool) -> None:
    if "study" in COMMANDS[name].options and "study" not in own:
        others = ", ".join(key for key in COMMANDS if key != RUN)
        raise ConfigError(f"give study=NAME, or one of the commands {others} (--help shows all)")
    if multirun and name != "train":
        raise ConfigError("-m is an option of train only; a study lists its arms in its file")
    if multirun and not overrides:
        raise ConfigError("-m needs at least one key=a,b: a list of values to combine, such as seed=0,1")
    unused = [] if multirun or name != "train" else [key for key in RUNNING if key in own]
    if unused:
        raise ConfigError(f"'{unused[0]}' is not an option of microdit-sweep train without -m")
