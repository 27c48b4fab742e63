"""The `microdit-sweep` command: composes with Hydra, runs, records in MLflow."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from microdit.errors import ConfigError, MicroditError, nearest

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


@dataclass(frozen=True)
class Words:
    """The command line, sorted: the sweep's own words, and overrides of the recipe."""

    command: str
    own: dict[str, Any]
    overrides: list[str]

    @property
    def root(self) -> Path:
        return Path(str(self.own.get("root", "runs")))

    def uri(self) -> str:
        from sweeps.store import default_uri

        return str(self.own.get("tracking_uri") or default_uri(self.root))


OWN = ("study", "scale", "workers", "seeds", "reuse", "root", "tracking_uri", "port")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where trials failed, 2 for a user's error, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    try:
        return _dispatch(_sort(words))
    except MicroditError as error:
        print(f"microdit-sweep: {error}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 2
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
            own[key] = yaml.safe_load(value)
        else:
            overrides.append(word)
    if command not in ("train", "config", "ui") and "study" not in own:
        raise ConfigError("give study=NAME, or one of the commands plan, train, config, ui (--help shows all)")
    return Words(command, own, overrides)


def _dispatch(words: Words) -> int:
    if words.command == "ui":
        return _ui(words)
    if words.command == "config":
        from microdit.config_io import to_mapping
        from sweeps.compose import compose_config

        values = to_mapping(compose_config(_scaled(words)))
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
        return 0
    if words.command == "train":
        return _train(words)
    return _study(words)


def _scaled(words: Words) -> list[str]:
    return [f"scale={words.own.get('scale', 'demo')}", *words.overrides]


def _study(words: Words) -> int:
    from sweeps.launch import launch_study, plan_study
    from sweeps.study import load_study

    seeds = words.own.get("seeds")
    if seeds is not None:
        seeds = seeds if isinstance(seeds, list) else [seeds]
        if not all(isinstance(seed, int) for seed in seeds):
            raise ConfigError(f"seeds={seeds}: give whole numbers, as seeds=[0,1,2]")
    study = load_study(str(words.own["study"]), str(words.own.get("scale", "demo")), tuple(seeds) if seeds else None)
    reuse = words.own.get("reuse", True)
    if not isinstance(reuse, bool):
        raise ConfigError(f"reuse={reuse}: it must be true or false")
    if words.command == "plan":
        return plan_study(study, words.overrides, words.root, words.uri())
    return launch_study(study, words.overrides, words.root, words.uri(), _workers(words), reuse, _command_line())


def _workers(words: Words) -> int:
    wanted = words.own.get("workers")
    if wanted is None:
        import torch

        return torch.cuda.device_count() or len(os.sched_getaffinity(0))
    if not isinstance(wanted, int) or wanted < 1:
        raise ConfigError(f"workers={wanted}: it must be a whole number of at least 1")
    return wanted


def _train(words: Words) -> int:
    from microdit.config import trial_key
    from microdit.run import run
    from sweeps.compose import compose_config
    from sweeps.recorder import MlflowRecorder
    from sweeps.store import Store

    config = compose_config(_scaled(words))
    key = trial_key(config)
    if not any(word.startswith("output_dir=") for word in words.overrides):
        folder = words.root / "train" / f"{config.name}-seed{config.seed}-{key[:8]}"
        config = replace(config, output_dir=str(folder))
    store = Store(words.uri(), words.root)
    experiment = store.experiment("microdit/train")
    tags = {
        "microdit.role": "trial",
        "microdit.study": "train",
        "microdit.arm": config.name,
        "microdit.trial_key": key,
        "microdit.scale": str(words.own.get("scale", "demo")),
    }
    params = {word.partition("=")[0]: word.partition("=")[2] for word in words.overrides}
    recorder = MlflowRecorder(
        words.uri(), experiment, config.name, tags, {"seed": config.seed, **params}, _command_line()
    )
    metrics = run(config, recorder, progress=True)
    for name, value in metrics.items():
        print(f"{name:24s} {value:.6g}")
    print(f"outputs in {config.output_dir}; microdit-sweep ui shows the run")
    return 0


def _ui(words: Words) -> int:
    from sweeps.store import Store

    port = words.own.get("port", 5000)
    uri = words.uri()
    Store(uri, words.root)
    print(f"http://127.0.0.1:{port} shows {uri} (Ctrl-C ends it)", flush=True)
    time.sleep(0.1)
    arguments = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    os.execv(sys.executable, arguments)


def _command_line() -> str:
    return "microdit-sweep " + shlex.join(sys.argv[1:])
