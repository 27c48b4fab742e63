"""One run outside any study, recorded in experiment `microdit/train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from microdit.config import Config, trial_key
from microdit.process_identity import this_process
from microdit.processes import count, is_main
from microdit.training.stop import asked_by_signals
from microdit.waiting import waiting
from sweeps.filters import search_runs
from sweeps.launch import Options
from sweeps.order import unsound_scores
from sweeps.recorder import MlflowRecorder, RunSpec
from sweeps.store import PROCESS_TAG, STATUS_DONE, Store

EXPERIMENT = "microdit/train"


def train_one(config: Config, scale: str, overrides: dict[str, str], options: Options) -> int:
    """Trains `config`, or shows what it gave if it is finished already; an interrupted run goes on.

    `overrides` become the run's parameters beside the seed. An `output_dir` among them is kept. Of several processes
    (torchrun), the main one alone deals with the store.
    """
    from microdit.run import run

    key = trial_key(config)
    if "output_dir" not in overrides:
        folder = options.root / "train" / f"{config.name}-seed{config.seed}-{key[:8]}"
        config = dataclasses.replace(config, output_dir=str(folder))
    recorder = _recorder(config, key, scale, overrides, options) if is_main() else None
    if not _agreed(config, recorder is not None):
        return 0
    with asked_by_signals() as stop:
        metrics = run(config, recorder, progress=True, stop=stop)
    if is_main():
        _show(metrics, config)
    return 0


def _agreed(config: Config, trains: bool) -> bool:
    """Whether the main process trains, as all have to know."""
    if count() == 1:
        return trains
    from accelerate.utils import broadcast_object_list

    from microdit.run import build_accelerator

    build_accelerator(config)  # the processes meet
    return bool(broadcast_object_list([trains])[0])


def _recorder(
    config: Config, key: str, scale: str, overrides: dict[str, str], options: Options
) -> MlflowRecorder | None:
    """The run to record in, new or resumed; None, after showing what it gave, where it is finished already."""
    with waiting("the MLflow store to open"):
        store = Store(options.uri, options.root, options.artifacts)
        experiment = store.experiment(EXPERIMENT)
    store.end_dead_runs(EXPERIMENT)
    before = _newest(store, experiment, key, config) if options.reuse else None
    wrong = unsound_scores(before.data.metrics) if before is not None and before.info.status == STATUS_DONE else ""
    if before is not None and wrong:
        print(f"run {before.info.run_id} finished, but {wrong}: it counts as failed and is trained again", flush=True)
        before = None
    if before is not None and before.info.status == STATUS_DONE:
        print("finished before; reuse=false runs it again")
        _show({k: v for k, v in before.data.metrics.items() if k.startswith(("final/", "cost/"))}, config)
        return None
    tags = {
        "microdit.role": "trial",
        PROCESS_TAG: this_process(),
        "microdit.study": "train",
        "microdit.arm": config.name,
        "microdit.trial_key": key,
        "microdit.scale": scale,
        "microdit.rerun": f"microdit train {Path(config.output_dir).resolve() / 'config.yaml'}",
    }
    params: dict[str, Any] = {name: value for name, value in overrides.items() if name not in ("name", "output_dir")}
    spec = RunSpec(experiment, config.name, tags, {"seed": config.seed, **params}, options.command)
    return MlflowRecorder(options.uri, spec, before.info.run_id if before is not None else None)


def _newest(store: Store, experiment: str, key: str, config: Config) -> Any | None:
    """The newest run of these settings that wrote to this folder."""
    folder = Path(config.output_dir).resolve()
    tags = {"microdit.trial_key": key, "microdit.output_dir": str(folder)}
    return next(iter(search_runs(store.client, [experiment], tags, most=1)), None)


def _show(metrics: dict[str, float], config: Config) -> None:
    for name, value in sorted(metrics.items()):
        print(f"{name:24s} {value:.6g}")
    print(f"\noutputs in {config.output_dir}; microdit-sweep ui shows the run")
