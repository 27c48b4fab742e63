"""The `microdit-sweep` command: composes with Hydra, runs, records in MLflow."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from microdit.errors import ConfigError, DivergenceError, MicroditError, nearest

HELP = """\
microdit-sweep study=NAME [scale=demo] [key=value ...]   run a study, every trial recorded in MLflow
microdit-sweep plan study=NAME [...]                     its trials and what they cost; trains nothing
microdit-sweep train [key=value ...]                     one run, recorded in experiment microdit/train
microdit-sweep config [key=value ...]                    print the complete config.yaml that `microdit train` reads
microdit-sweep ui [port=5000]                            browse the runs

Words of its own:
  study=NAME|FILE.yaml   a study of experiments/study, or a file of yours
  scale=NAME             smoke | demo | gpu | paper (default demo)
  workers=N              trials at a time (default: the GPUs, else the CPU cores)
  seeds=[0,1]            instead of the study's own
  reuse=false            run again what is finished already
  root=runs              where outputs and the default store lie
  tracking_uri=URI       MLflow store (default: MLFLOW_TRACKING_URI, else sqlite under root)
Every other key=value overrides experiments/base.yaml for all arms, e.g. training.steps=3000."""

COMMANDS = ("plan", "train", "config", "ui")
OWN = ("study", "scale", "workers", "seeds", "reuse", "root", "tracking_uri", "port")
STUDY_ONLY = ("study", "seeds", "workers")


@dataclass(frozen=True)
class Words:
    """The command line, sorted: the sweep's own words, and overrides of the recipe."""

    command: str
    own: dict[str, Any]
    overrides: list[str]

    @property
    def root(self) -> Path:
        return Path(str(self.own.get("root") or "runs"))

    @property
    def scale(self) -> str:
        return str(self.own.get("scale") or "demo")

    def uri(self) -> str:
        from sweeps.store import absolute_uri, default_uri

        given = self.own.get("tracking_uri")
        return absolute_uri(str(given)) if given else default_uri(self.root)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where trials failed, 2 for a user's error, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or any(word in ("-h", "--help", "help") for word in words):
        print(HELP)
        return 0
    try:
        return _dispatch(_sort(words), "microdit-sweep " + shlex.join(words))
    except DivergenceError as error:
        print(f"microdit-sweep: {error}", file=sys.stderr)
        return 1
    except MicroditError as error:
        print(f"microdit-sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("microdit-sweep: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _sort(words: Sequence[str]) -> Words:
    command = ""
    own: dict[str, Any] = {}
    overrides = []
    for word in words:
        key, sep, value = word.partition("=")
        if not sep:
            if command or word not in COMMANDS:
                raise ConfigError(f"'{word}' is neither a command nor key=value; {nearest(word, (*COMMANDS, *OWN))}")
            command = word
        elif key in OWN:
            if key in own:
                raise ConfigError(f"'{word}': {key} is given already, as {key}={own[key]}")
            own[key] = _value(key, value)
        else:
            overrides.append(word)
    if command in ("", "plan") and "study" not in own:
        raise ConfigError(f"give study=NAME, or one of the commands {', '.join(COMMANDS)} (--help shows all)")
    _refuse_unused(command, own, overrides)
    return Words(command, own, overrides)


def _value(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if value is None or value == "":
        raise ConfigError(f"'{key}={text}': it needs a value")
    return value


def _refuse_unused(command: str, own: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """A word that would be ignored is an error: its giver expects something of it."""
    unused = [key for key in STUDY_ONLY if command in ("train", "config", "ui") and key in own]
    unused += ["port"] if "port" in own and command != "ui" else []
    unused += [overrides[0]] if command == "ui" and overrides else []
    if unused:
        raise ConfigError(f"'{unused[0]}' means nothing to microdit-sweep {command or 'study=...'}")
    for word in overrides:
        key = word.partition("=")[0]
        if key != "seed" and difflib.get_close_matches(key, OWN, n=1, cutoff=0.8):
            raise ConfigError(f"unknown key '{key}'; {nearest(key, OWN)}")


def _dispatch(words: Words, command_line: str) -> int:
    if words.command == "ui":
        return _ui(words)
    if words.command == "config":
        from microdit.config_io import to_mapping
        from sweeps.compose import compose_config

        values = to_mapping(compose_config([f"scale={words.scale}", *words.overrides]))
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
        return 0
    from sweeps.launch import Options

    reuse = words.own.get("reuse", True)
    if not isinstance(reuse, bool):
        raise ConfigError(f"reuse={reuse}: it must be true or false")
    options = Options(words.root, words.uri(), _workers(words), reuse, command_line)
    return _train(words, options) if words.command == "train" else _study(words, options)


def _study(words: Words, options: Any) -> int:
    from sweeps.launch import launch_study, plan_study
    from sweeps.study import load_study

    seeds = words.own.get("seeds")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, list) else [seeds]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise ConfigError(f"seeds={words.own['seeds']}: give whole numbers, as seeds=[0,1,2]")
    study = load_study(str(words.own["study"]), words.scale, tuple(seeds) if seeds else None)
    return (plan_study if words.command == "plan" else launch_study)(study, words.overrides, options)


def _workers(words: Words) -> int:
    wanted = words.own.get("workers")
    if wanted is None:
        from sweeps.runner import visible_gpus

        return len(visible_gpus()) or len(os.sched_getaffinity(0))
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ConfigError(f"workers={wanted}: it must be a whole number of at least 1")
    return wanted


def _train(words: Words, options: Any) -> int:
    from sweeps.compose import compose_config
    from sweeps.single import train_one

    config = compose_config([f"scale={words.scale}", *words.overrides])
    overrides = {word.partition("=")[0]: word.partition("=")[2] for word in words.overrides}
    return train_one(config, words.scale, overrides, options)


def _ui(words: Words) -> int:
    from sweeps.ui import serve

    port = words.own.get("port", 5000)
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigError(f"port={port}: it must be a whole number below 65536")
    return serve(words.uri(), words.root, port)
