"""Run the `microdit-sweep` command: compose with Hydra, train, record in MLflow."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from microdit.common.command_line import FAILED, USER_ERROR, run_command
from microdit.common.errors import ConfigError, DivergenceError, MicroditError
from microdit.common.limits import Range
from microdit.common.process.distributed import destroy_process_group, is_main, world_size
from microdit.common.process.waiting import waiting
from microdit.common.stores.secrets import masked
from sweeps.arguments import LAUNCHER, CommandLine, parse_command_line

if TYPE_CHECKING:
    from sweeps.config.study import Study
    from sweeps.execution.launch_spec import Options
    from sweeps.planning.cost_estimate import EstimateOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after the program's name; None: those of the process.

    Returns:
        The exit code: 0; 1 if trials failed or training diverged; 2 for an error of the user; 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_command(
        "microdit-sweep",
        lambda: _run(words),
        explain=_explain,
        interrupted="interrupted; the same command resumes where it stopped",
        mask=masked,
    )


def _run(words: Sequence[str]) -> int:
    code = _dispatch(parse_command_line(words), "microdit-sweep " + shlex.join(masked(word) for word in words))
    destroy_process_group()
    return code


def _explain(error: Exception) -> tuple[str, int] | None:
    if isinstance(error, DivergenceError):
        return str(error), FAILED
    if isinstance(error, MicroditError):
        return None
    from sweeps.tracking.retry import is_store_error, store_trouble

    return (store_trouble(error), USER_ERROR) if is_store_error(error) else None


def _load() -> None:
    """Import PyTorch after printing a line, because it takes up to a minute on a busy machine."""
    if is_main() and "torch" not in sys.modules:
        print("loading PyTorch", file=sys.stderr, flush=True)
    with waiting("PyTorch to load"):
        from sweeps.execution.launch import launch_study  # noqa: F401


def _dispatch(words: CommandLine, command_line: str) -> int:
    if words.command == "ui":
        return _ui(words)
    if words.command == "relocate":
        from sweeps.tracking.relocate import relocate

        return relocate(words.root, words.uri(), words.queue_uri())
    if words.command == "config":
        from microdit.common.parsing import to_mapping
        from microdit.config.sizes import check_stated_sizes
        from sweeps.config.hydra_compose import compose_config

        config = compose_config([f"scale={words.scale}", *words.overrides])
        check_stated_sizes(config)
        print(yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True), end="")
        return 0
    if words.command == "status":
        from sweeps.execution.status_command import status

        wide = words.switch("wide", False)
        return status(str(words.own["study"]), words.scale, words.queue_uri(), words.uri(), words.root, wide)
    if world_size() > 1 and (words.command != "train" or words.multirun):
        raise ConfigError(
            "torchrun starts several processes of one run, which microdit-sweep train and microdit train can be; the "
            "trials of a study are distributed with workers=N"
        )
    atexit.register(gc.freeze)  # at exit, Python would collect all of PyTorch's objects, which takes seconds
    if words.command == "train" and not words.multirun:
        return _train(words, command_line)
    return _study(words, command_line)


def _options(words: CommandLine, command_line: str) -> Options:
    from sweeps.execution.launch_spec import Options

    per_gpu = words.number("workers_per_gpu", 1, Range(1))
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
        max_retries=words.number("max_retries", 1, Range(0)),
        fail_fast=words.switch("fail_fast", False),
        wide=words.switch("wide", False),
    )


def _study(words: CommandLine, command_line: str) -> int:
    from sweeps.config.study import load_study, study_names

    overrides = [word for word in words.overrides if not word.startswith(LAUNCHER)]
    if words.multirun:
        from sweeps.config.multirun import multirun_study

        study, fixed = multirun_study(overrides, words.scale)
        return _launch(study, fixed, words, command_line)
    seeds = words.own.get("seeds")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, list) else [seeds]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise ConfigError(f"seeds={words.own['seeds']}: give whole numbers, as seeds=[0,1,2]")
    named = words.own["study"]
    names = study_names() if named == "all" else named if isinstance(named, list) else [named]
    if len(names) > 1 and words.command != "plan":
        raise ConfigError(f"study={named}: several studies can be planned together, but must be launched one by one")
    studies = [load_study(str(name), words.scale, tuple(seeds) if seeds else None) for name in names]
    if words.command == "plan":
        from sweeps.planning.plan_command import plan_study

        return plan_study(studies, overrides, _options(words, command_line), _estimate_options(words))
    return _launch(studies[0], overrides, words, command_line)


def _launch(study: Study, overrides: list[str], words: CommandLine, command_line: str) -> int:
    _load()
    from sweeps.execution.launch import launch_study

    return launch_study(study, overrides, _options(words, command_line))


def _estimate_options(words: CommandLine) -> EstimateOptions:
    from sweeps.planning.cost_estimate import Accelerator, EstimateOptions, load_accelerator

    device = load_accelerator(str(words.own.get("accelerator", "h100")))
    price = words.number("usd_per_hour", device.usd_per_hour, Range(0, 1e9))
    utilisation = words.number("utilisation", EstimateOptions.utilisation, Range(above=0, most=1))
    return EstimateOptions(Accelerator(device.name, device.tflops, price), utilisation, words.switch("measure", True))


def _workers(words: CommandLine, per_gpu: int) -> int:
    if "workers" not in words.own:
        from microdit.common.hardware import visible_gpus

        return len(visible_gpus()) * per_gpu or len(os.sched_getaffinity(0))
    return words.number("workers", 1, Range(1))


def _train(words: CommandLine, command_line: str) -> int:
    from microdit.config.sizes import check_stated_sizes
    from sweeps.config.hydra_compose import compose_config

    config = compose_config([f"scale={words.scale}", *words.overrides])
    check_stated_sizes(config)
    overrides = {word.partition("=")[0]: word.partition("=")[2] for word in words.overrides}
    _load()
    from sweeps.execution.train_command import train_one

    return train_one(config, words.scale, overrides, _options(words, command_line))


def _ui(words: CommandLine) -> int:
    from sweeps.tracking.mlflow_ui import serve

    return serve(words.uri(), words.root, words.number("port", 5000, Range(1, 65535)))
