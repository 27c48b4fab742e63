"""Measure time and peak memory of a report on a large generated store.

    python tests/benchmarks/report_scaling.py [runs=10000] [points=100] [arms=100]

Two studies in one sqlite store: one of that many runs and one of 20, like a user's latest study among all the
others. Each run has two curves that a report reads and one that it doesn't, of that many points each, beside the
scores, settings and tags that a trial leaves. They are written straight into MLflow's tables, in a temporary folder;
each report is then made in its own process, whose peak memory is printed.
"""

from __future__ import annotations

import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import ReportError
from analysis.io.store import quiet
from microdit.common.errors import nearest

MEASURE = "measure"  # first word of the process that makes one report
DEFAULTS = {"runs": 10_000, "points": 100, "arms": 100}
STUDY, SMALL = "masking_ratio", "mixer_size"
FEW, FEW_ARMS = 20, 5  # runs and arms of the small study
CURVES = ("train/loss", "val/loss", "train/grad_norm")
SCORES = ("fd", "kid", "clip_fd", "clip_score", "class_accuracy", "val_loss", "fd_floor", "clip_fd_floor")
COUNTS = {"final/samples": 256.0, "final/reference_images": 1024.0, "cost/params": 1e6, "cost/active_params": 1e6}
COUNTS |= {"cost/gflops_per_image": 1.0, "cost/usd": 0.01}
BATCH = 500  # runs written at a time
BEGIN = 1_700_000_000_000  # milliseconds; the runs start one after the other
RUN = ("run_uuid", "name", "source_type", "source_name", "user_id", "status", "start_time", "end_time")
METRIC = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": (*RUN, "lifecycle_stage", "artifact_uri", "experiment_id"),
    "tags": ("run_uuid", "key", "value"),
    "params": ("run_uuid", "key", "value"),
    "latest_metrics": METRIC,
    "metrics": METRIC,
}
Rows = dict[str, list[tuple[Any, ...]]]


def bench(words: Sequence[str]) -> None:
    """Create the store, run a report of each study in its own process, and print the costs."""
    sizes = _sizes(words)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        uri = fill(Path(folder), **sizes)
        size = (Path(folder) / "mlflow.db").stat().st_size / 2**20
        print(f"{sizes['runs'] + FEW} runs, {size:.0f} MiB, made in {_since(begin):.1f} s", flush=True)
        for study in (STUDY, SMALL):
            line = [sys.executable, __file__, MEASURE, uri, study, str(Path(folder) / "results")]
            answer = subprocess.run(line, check=True, capture_output=True, text=True).stdout
            count, found = json.loads(answer.splitlines()[-1])
            print(f"\n{study}: {count} runs")
            for name, seconds, cpu, peak in found:
                print(f"  {name:18s}{seconds:7.2f} s  (CPU {cpu:6.2f} s)   peak {peak:6.0f} MiB", flush=True)


def _sizes(words: Sequence[str]) -> dict[str, int]:
    sizes = dict(DEFAULTS)
    for word in words:
        name, _, value = word.partition("=")
        if name not in sizes:
            raise ReportError(f"'{word}': there is no '{name}'; {nearest(name, sizes)}")
        if not value.isdigit() or not int(value):
            raise ReportError(f"'{word}': it must be a whole number from 1")
        sizes[name] = int(value)
    return sizes


def measure(uri: str, study: str, out: Path) -> tuple[int, list[tuple[str, float, float, float]]]:
    """Return the number of runs and, per part of the report, seconds, CPU seconds and peak MiB so far."""
    quiet()
    begin = time.monotonic()
    from analysis.figures.curves import curve_figure
    from analysis.io.results import load
    from analysis.io.store import open_store
    from analysis.report.study import page, write

    client = open_store(uri)
    rows = [("imports, opening", _since(begin), time.process_time(), _peak())]

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, used = time.monotonic(), time.process_time()
        result = work()
        rows.append((name, _since(start), time.process_time() - used, _peak()))
        return result

    results = timed("load", lambda: load(client, study))
    timed("tables, verdicts", lambda: page(results))
    timed("curves", lambda: curve_figure(results))
    timed("whole report", lambda: write(results, out))
    return len(results.frame), rows


def fill(root: Path, runs: int, points: int, arms: int) -> str:
    """Create a store under `root` with a launch of `runs` finished trials and a small one; return its URI."""
    from mlflow import MlflowClient

    quiet()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri)
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        client.search_experiments(max_results=1)
        database.execute("PRAGMA synchronous=OFF")
        _launch(client, database, root, STUDY, range(runs), points, min(arms, runs))
        _launch(client, database, root, SMALL, range(runs, runs + FEW), points, FEW_ARMS)
    return uri


def _launch(
    client: Any, database: sqlite3.Connection, root: Path, study: str, numbers: range, points: int, arms: int
) -> None:
    """Write a study's experiment, parent run and trials, numbered through the whole store."""
    experiment = client.create_experiment(f"microdit/{study}", (root / "artifacts").as_uri())
    tags = {"microdit.role": "study", "microdit.study": study, "microdit.scale": "demo"}
    parent = client.create_run(experiment, tags=tags).info.run_id
    settings = settings_of(arms)
    seeds = -(-len(numbers) // arms)
    (root / "study.yaml").write_text(yaml.safe_dump(_study(settings, seeds), sort_keys=False))
    client.log_artifact(parent, str(root / "study.yaml"))
    places = [(arm, seed) for seed in range(seeds) for arm in settings]
    for start in range(0, len(numbers), BATCH):
        rows: Rows = {table: [] for table in COLUMNS}
        for number, (arm, seed) in zip(numbers[start : start + BATCH], places[start : start + BATCH], strict=False):
            trial = _Trial(study, number, arm, seed, settings[arm])
            trial.write(rows, points, root / "artifacts", int(experiment), parent)
        for table, names in COLUMNS.items():
            marks = ", ".join("?" * len(names))
            database.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows[table])
        database.commit()


def settings_of(arms: int) -> dict[str, dict[str, Any]]:
    """Return arms by name: none, then naive and deferred masking at rising ratios."""
    found: dict[str, dict[str, Any]] = {"none": {"model.masking.method": "none", "model.masking.ratio": 0.0}}
    for number in range(1, arms):
        method, ratio = ("naive", "deferred")[number % 2], round(0.9 * ((number + 1) // 2) / (arms // 2 + 1), 4)
        found[f"{method}_{ratio}"] = {"model.masking.method": method, "model.masking.ratio": ratio}
    return found


def _study(settings: dict[str, dict[str, Any]], seeds: int) -> dict[str, Any]:
    return {
        "question": "What does a report of many runs cost?",
        "baseline": "none",
        "holds": "steps",
        "arms": settings,
        "seeds": list(range(seeds)),
        "metrics": {"primary": "clip_fd", "direction": "minimize"},
        "figure": {"x": "model.masking.ratio", "hue": "model.masking.method"},
    }


class _Trial:
    """Return the rows and the config.yaml of one finished trial."""

    def __init__(self, study: str, number: int, arm: str, seed: int, settings: dict[str, Any]) -> None:
        self.id, self.study, self.arm, self.seed = f"{number:032x}", study, arm, seed
        self.number, self.settings = number, settings

    def write(self, rows: Rows, points: int, root: Path, experiment: int, parent: str) -> None:
        """Add the rows to each table, and write config.yaml to the run's folder under `root`."""
        start = BEGIN + 1000 * self.number
        artifacts = root / self.id / "artifacts"
        name = f"{self.arm}/seed{self.seed}"
        place = (start, start + 900, "active", artifacts.as_uri(), experiment)
        rows["runs"].append((self.id, name, "LOCAL", "microdit-sweep", "bench", "FINISHED", *place))
        rows["tags"] += [(self.id, key, value) for key, value in self._tags(name, parent).items()]
        params = {"seed": self.seed, **self.settings}
        rows["params"] += [(self.id, key, str(value)) for key, value in params.items()]
        for key, step, value in self._metrics(points):
            row = (self.id, key, value, start + step, step, 0)
            rows["metrics"].append(row)
            if step in (0, points):
                rows["latest_metrics"].append(row)
        artifacts.mkdir(parents=True)
        config = {"seed": self.seed, "training": {"steps": 1400, "batch_size": 16}}
        (artifacts / "config.yaml").write_text(yaml.safe_dump(config))

    def _tags(self, name: str, parent: str) -> dict[str, str]:
        own = {"role": "trial", "study": self.study, "scale": "demo", "arm": self.arm, "trial_key": self.id[-16:]}
        own |= {"data_fingerprint": "f" * 64, "feature_net": "efficientnet-lite0@0a1b2c3d+score-clip@4e5f6a7b"}
        own |= {"samples": "256", "device": "cpu", "git_commit": "0123456789abcdef", "git_dirty": "false"}
        own |= {"training.steps": "1400", "training.batch_size": "16"}
        own |= {"command": "report_scaling.py", "host": "bench", "log": f"runs/{name}/log.txt"}
        tags = {f"microdit.{key}": value for key, value in own.items()}
        return tags | {"mlflow.parentRunId": parent, "mlflow.runName": name, "mlflow.user": "bench"}

    def _metrics(self, points: int) -> Iterator[tuple[str, int, float]]:
        rng = random.Random(self.number)
        level = float(self.settings["model.masking.ratio"])
        for name in SCORES:
            yield f"final/{name}", 0, 100 + 10 * level + rng.gauss(0, 1) if "floor" not in name else 50.0
        yield "cost/train_flops", 0, 1e15 * (1 - level)
        yield "cost/seconds", 0, 100 * (1 - level) + rng.random()
        yield from ((name, 0, value) for name, value in COUNTS.items())
        for step in range(1, points + 1):
            for name in CURVES:
                yield name, step, 0.3 + level / 10 + 1 / step + 0.02 * rng.random()


def _since(begin: float) -> float:
    return time.monotonic() - begin


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == [MEASURE]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    else:
        bench(sys.argv[1:])
