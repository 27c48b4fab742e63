"""The `microdit-sweep` command: composes with Hydra, runs, records in MLflow."""

from __future__ import annotations

import atexit
import difflib
import gc
import math
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from microdit.common.errors import ConfigError, DivergenceError, MicroditError, named, nearest
from microdit.common.files.strict_yaml import load_yaml
from microdit.common.process.distributed import destroy_process_group, is_main, should_report_error, world_size
from microdit.common.process.terminal import safely
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import masked
from microdit.common.stores.sqlite_uri import check_utf8
from sweeps.config.override_quoting import quoted_path
from sweeps.help import HELP
from sweeps.tracking.retry import file_trouble, is_store_error, store_trouble

COMMANDS = ("plan", "status", "train", "config", "bench", "relocate", "ui")
RUNNING = ("workers", "launcher", "workers_per_gpu", "max_retries", "fail_fast")
PLAN_ONLY = ("accelerator", "utilisation", "usd_per_hour", "measure")
STORES = ("tracking_uri", "queue_uri", "artifacts_uri")
SWEEP_KEYS = ("study", "scale", "seeds", "reuse", "root", "port", *STORES, *RUNNING, *PLAN_ONLY)
STUDY_ONLY = ("study", "seeds", *RUNNING)
LAUNCHER = "hydra.launcher."
MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class CommandLine:
    """The command line, sorted: the sweep's own words, and overrides of the recipe."""

    command: str
    own: dict[str, Any]
    overrides: list[str]
    multirun: bool = False

    @property
    def root(self) -> Path:
        return Path(str(self.own.get("root") or "runs"))

    @property
    def scale(self) -> str:
        return str(self.own.get("scale") or "demo")

    def uri(self) -> str:
        from sweeps.tracking.uris import absolute_uri, default_uri

        given = self.own.get("tracking_uri")
        return absolute_uri(str(given)) if given else default_uri(self.root)

    def queue_uri(self) -> str:
        from sweeps.tracking.uris import absolute_uri, default_queue_uri

        given = self.own.get("queue_uri")
        return absolute_uri(str(given), "queue_uri") if given else default_queue_uri(self.root)

    def number(self, key: str, default: int, least: int = 1) -> int:
        value = self.own.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{key}={value}: it must be a whole number of at least {least}")
        return value

    def switch(self, key: str, default: bool) -> bool:
        value = self.own.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value}: it must be true or false")
        return value


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, 1 if trials failed or training diverged, 2 for a user's error, 130 when interrupted."""
    return safely(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or any(word in ("-h", "--help", "help") for word in words):
        print(HELP)
        return 0
    try:
        code = _dispatch(_sort(words), "microdit-sweep " + shlex.join(masked(word) for word in words))
    except MicroditError as error:
        _say(masked(str(error)))
        return 1 if isinstance(error, DivergenceError) else 2
    except BrokenPipeError:
        raise
    except Exception as error:
        if is_store_error(error):
            _say(masked(store_trouble(error)))
            return 2
        if words_of_it := file_trouble(error):
            _say(masked(words_of_it))
            return 2
        if should_report_error():
            print(masked(traceback.format_exc()), end="", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on where it stopped")
        return 130
    destroy_process_group()
    return code


def _say(words: str) -> None:
    if should_report_error():  # of a run's processes
        print(f"microdit-sweep: {words}", file=sys.stderr)


def _sort(words: Sequence[str]) -> CommandLine:
    command = ""
    own: dict[str, Any] = {}
    overrides = []
    multirun = any(word in MULTIRUN for word in words)
    for word in [word for word in words if word not in MULTIRUN]:
        try:
            check_utf8(word)
        except ValueError as error:
            raise ConfigError(f"command line: {error}") from None
        key, sep, value = word.partition("=")
        if not sep:
            if command or word not in COMMANDS:
                raise ConfigError(
                    f"'{named(word)}' is neither a command nor key=value; {nearest(word, (*COMMANDS, *SWEEP_KEYS))}"
                )
            command = word
        elif key in SWEEP_KEYS:
            if key in own:
                raise ConfigError(f"'{word}': {key} is given already, as {key}={own[key]}")
            own[key] = _value(key, value)
        else:
            overrides.append(word if multirun else quoted_path(word))
    if command in ("", "plan", "status") and "study" not in own:
        raise ConfigError(f"give study=NAME, or one of the commands {', '.join(COMMANDS)} (--help shows all)")
    if multirun and command != "train":
        raise ConfigError("-m goes with train; a study names its arms itself")
    _refuse_unused(command, own, overrides, multirun)
    if multirun and not overrides:
        raise ConfigError("-m needs at least one key=a,b: a list of values to combine, such as seed=0,1")
    return CommandLine(command, own, overrides, multirun)


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


def _refuse_unused(command: str, own: Mapping[str, Any], overrides: Sequence[str], multirun: bool) -> None:
    """A word that would be ignored is an error: its giver expects something of it."""
    single = command == "train" and not multirun
    unused = [key for key in STUDY_ONLY if (command in ("config", "ui", "bench", "relocate") or single) and key in own]
    unused += [key for key in ("study", "seeds") if multirun and key in own]
    unused += [key for key in RUNNING if command == "status" and key in own]
    unused += [key for key in RUNNING if command == "plan" and key in own and key != "workers"]
    unused += [key for key in PLAN_ONLY if command != "plan" and key in own]
    unused += ["port"] if "port" in own and command != "ui" else []
    unused += [overrides[0]] if command in ("ui", "status", "bench", "relocate") and overrides else []
    if unused:
        raise ConfigError(f"'{unused[0]}' means nothing to microdit-sweep {command or 'study=...'}")
    for word in overrides:
        key = word.partition("=")[0]
        if key != "seed" and "." not in key and difflib.get_close_matches(key, SWEEP_KEYS, n=1, cutoff=0.8):
            raise ConfigError(f"unknown key '{key}'; {nearest(key, SWEEP_KEYS)}")


def _load(words: CommandLine) -> None:
    """Import what trains and records; a busy machine needs most of a minute for it, so a first line comes before."""
    if words.command in ("", "train") and is_main() and "torch" not in sys.modules:
        print("loading PyTorch and Optuna", file=sys.stderr, flush=True)
    atexit.register(gc.freeze)  # at exit, Python would collect all of PyTorch's objects, which takes seconds
    with waiting("PyTorch and Optuna to load"):
        from sweeps.execution.launch import launch_study  # noqa: F401


def _dispatch(words: CommandLine, command_line: str) -> int:
    if words.command == "ui":
        return _ui(words)
    if words.command == "relocate":
        from sweeps.tracking.relocate import relocate

        return relocate(words.root, words.uri(), words.queue_uri())
    if words.command == "config":
        from microdit.common.parsing import to_mapping
        from microdit.pipeline.sizes import check_stated_sizes
        from sweeps.config.hydra_compose import compose_config

        config = compose_config([f"scale={words.scale}", *words.overrides])
        check_stated_sizes(config)
        print(yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if words.command == "bench":
        from queue_overhead import bench

        return bench()
    if words.command == "status":
        from sweeps.execution.status_command import status

        return status(str(words.own["study"]), words.scale, words.queue_uri(), words.uri(), words.root)
    if world_size() > 1 and (words.command != "train" or words.multirun):
        raise ConfigError(
            "torchrun starts several processes of one run, which microdit-sweep train and microdit train can be; the "
            "trials of a study are shared out by workers=N"
        )
    _load(words)
    options = _options(words, command_line)
    if words.command == "train" and not words.multirun:
        return _train(words, options)
    return _study(words, options)


def _options(words: CommandLine, command_line: str) -> Any:
    from sweeps.execution.launch import Options

    per_gpu = words.number("workers_per_gpu", 1)
    return Options(
        root=words.root,
        uri=words.uri(),
        queue_uri=words.queue_uri(),
        workers=_workers(words, per_gpu),
        reuse=words.switch("reuse", True),
        command=command_line,
        artifacts=str(words.own.get("artifacts_uri", "")),
        launcher=str(words.own.get("launcher", "local")),
        launcher_options=tuple(word for word in words.overrides if word.startswith(LAUNCHER)),
        max_retries=words.number("max_retries", 1, least=0),
        fail_fast=words.switch("fail_fast", False),
    )


def _study(words: CommandLine, options: Any) -> int:
    from sweeps.config.study import load_study, study_names
    from sweeps.execution.launch import launch_study

    overrides = [word for word in words.overrides if not word.startswith(LAUNCHER)]
    if words.multirun:
        from sweeps.config.multirun import multirun_study

        study, fixed = multirun_study(overrides, words.scale)
        return launch_study(study, fixed, options)
    seeds = words.own.get("seeds")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, list) else [seeds]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise ConfigError(f"seeds={words.own['seeds']}: give whole numbers, as seeds=[0,1,2]")
    named = words.own["study"]
    names = study_names() if named == "all" else named if isinstance(named, list) else [named]
    if len(names) > 1 and words.command != "plan":
        raise ConfigError(f"study={named}: several studies can be planned together, but are launched one by one")
    studies = [load_study(str(name), words.scale, tuple(seeds) if seeds else None) for name in names]
    if words.command == "plan":
        from sweeps.planning.cost_estimate import estimate_options
        from sweeps.planning.plan_command import plan_study

        return plan_study(studies, overrides, options, estimate_options(words.own))
    return launch_study(studies[0], overrides, options)


def _workers(words: CommandLine, per_gpu: int) -> int:
    if "workers" not in words.own:
        from sweeps.execution.worker import visible_gpus

        return len(visible_gpus()) * per_gpu or len(os.sched_getaffinity(0))
    return words.number("workers", 1)


def _train(words: CommandLine, options: Any) -> int:
    from microdit.pipeline.sizes import check_stated_sizes
    from sweeps.config.hydra_compose import compose_config
    from sweeps.execution.train_command import train_one

    config = compose_config([f"scale={words.scale}", *words.overrides])
    check_stated_sizes(config)
    overrides = {word.partition("=")[0]: word.partition("=")[2] for word in words.overrides}
    return train_one(config, words.scale, overrides, options)


def _ui(words: CommandLine) -> int:
    from sweeps.tracking.mlflow_ui import serve

    port = words.own.get("port", 5000)
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ConfigError(f"port={port}: it must be a whole number below 65536")
    return serve(words.uri(), words.root, port)
