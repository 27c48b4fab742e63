"""Train one run outside any study, recorded in experiment `microdit/train`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from microdit.common.contract import (
    CONFIG_FILE,
    SEED,
    SINGLE_RUN_EXPERIMENT,
    SINGLE_RUN_STUDY,
    SINGLE_VALUE_PREFIXES,
    Role,
    Status,
    Tag,
)
from microdit.common.process.distributed import is_main, world_size
from microdit.common.process.identity import this_process
from microdit.common.process.waiting import waiting
from microdit.common.stores.run_search import search_runs
from microdit.config.identity import trial_key
from microdit.config.schema import Config
from microdit.evaluation.report import feature_net_name
from microdit.pipeline.inputs import build_accelerator
from microdit.pipeline.train_and_evaluate import prepare, run
from microdit.training.graceful_stop import handle_stop_signals
from sweeps.execution.launch_spec import Options, unsound_scores
from sweeps.planning.trials import folder_name, identity_tags
from sweeps.tracking.mlflow_logger import MlflowLogger, RunSpec
from sweeps.tracking.mlflow_store import Store


def train_one(config: Config, scale: str, overrides: dict[str, str], options: Options) -> int:
    """Train a configuration, or print its results if its run is finished.

    An interrupted run is resumed. Of several processes (torchrun), only the main one prepares the data and uses the
    store.

    Args:
        config: the configuration; its output folder is under `options.root`, unless overridden.
        scale: name of the scale, a tag of the run.
        overrides: value of each overridden key; these and the random seed become the run's params.
        options: options of the launch.

    Returns:
        0, the exit code.
    """
    recorder = None
    if is_main():
        identity = _identity(config)
        if "output_dir" not in overrides:
            data = identity[Tag.DATA_FINGERPRINT]
            name = folder_name(f"{config.name}-seed{config.seed}", trial_key(config), data)
            config = dataclasses.replace(config, output_dir=str(options.root / "train" / name))
        recorder = _recorder(config, identity, scale, overrides, options)
    trains, folder = _agreed(config, recorder is not None)
    if not trains:
        return 0
    config = dataclasses.replace(config, output_dir=folder)
    with handle_stop_signals() as stop:
        metrics = run(config, recorder, progress=True, stop=stop)
    if is_main():
        _show(metrics, config)
    return 0


def _identity(config: Config) -> dict[str, str]:
    """Return the tags that identify `config` with the present data, prompts and networks."""
    data = prepare(config).data_fingerprint
    return identity_tags(trial_key(config), data, feature_net_name(config.evaluation))


def _agreed(config: Config, trains: bool) -> tuple[bool, str]:
    """Return on all processes whether the main one trains, and in which folder."""
    if world_size() == 1:
        return trains, config.output_dir
    build_accelerator(config)  # the processes connect
    found = broadcast_object_list([trains, config.output_dir])
    return bool(found[0]), str(found[1])


def _recorder(
    config: Config, identity: dict[str, str], scale: str, overrides: dict[str, str], options: Options
) -> MlflowLogger | None:
    """Return the logger of a new or resumed run; print the results and return None if it is finished."""
    with waiting("the MLflow store to open"):
        store = Store(options.uri, options.root, options.artifacts)
        experiment = store.experiment(SINGLE_RUN_EXPERIMENT)
    store.end_dead_runs(SINGLE_RUN_EXPERIMENT)
    before = _newest(store, experiment, identity, config) if options.reuse else None
    unsound = (
        unsound_scores(before.data.metrics) if before is not None and before.info.status == Status.FINISHED else ""
    )
    if before is not None and unsound:
        print(f"run {before.info.run_id} finished, but {unsound}: it counts as failed and is trained again", flush=True)
        before = None
    if before is not None and before.info.status == Status.FINISHED:
        print("finished before; reuse=false runs it again")
        _show({k: v for k, v in before.data.metrics.items() if k.startswith(SINGLE_VALUE_PREFIXES)}, config)
        return None
    if before is None and options.reuse:
        line = store.outdated(experiment, scale, {(config.name, config.seed)})
        print(line, end="\n" if line else "", file=sys.stderr)
    tags = {
        Tag.ROLE: Role.TRIAL,
        Tag.PROCESS: this_process(),
        Tag.STUDY: SINGLE_RUN_STUDY,
        Tag.ARM: config.name,
        **identity,
        Tag.SCALE: scale,
        Tag.RERUN: f"microdit train {Path(config.output_dir).resolve() / CONFIG_FILE}",
    }
    params: dict[str, Any] = {name: value for name, value in overrides.items() if name not in ("name", "output_dir")}
    spec = RunSpec(experiment, config.name, tags, {SEED: config.seed, **params}, options.command)
    return MlflowLogger(options.uri, spec, before.info.run_id if before is not None else None)


def _newest(store: Store, experiment: str, identity: dict[str, str], config: Config) -> Any | None:
    """Return the newest run of this identity in this folder, or one killed before it recorded its folder."""
    folder = str(Path(config.output_dir).resolve())
    found = search_runs(store.client, [experiment], identity, most=50)
    return next((run for run in found if run.data.tags.get(Tag.OUTPUT_DIR, folder) == folder), None)


def _show(metrics: dict[str, float], config: Config) -> None:
    for name, value in sorted(metrics.items()):
        print(f"{name:24s} {value:.6g}")
    print(f"\noutputs in {config.output_dir}; microdit-sweep ui shows the run")
