"""What a report of a big study costs: time and peak memory on a store that is made for it.

    python -m analysis.bench [runs=10000] [points=100] [arms=100]

One launch of `masking_ratio` whose runs have two curves that a report reads and one that it doesn't, of that many
points each, beside the final scores, settings and tags that a trial leaves. It is written straight into MLflow's sqlite
tables, in a temporary folder; the report is then made by a process of its own, whose peak memory is told.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import ReportError
from analysis.store import quiet

DEFAULTS = {"runs": 10_000, "points": 100, "arms": 100}
STUDY = "masking_ratio"
CURVES = ("train/loss", "val/loss", "train/grad_norm")
SCORES = ("fd", "kid", "clip_fd", "clip_score", "class_accuracy", "val_loss", "fd_floor", "clip_fd_floor")
COSTS = ("params", "active_params", "gflops_per_image", "train_flops", "seconds", "usd")
BATCH = 500  # runs written at a time
BEGIN = 1_700_000_000_000  # milliseconds; the runs start one after the other
INSERTS = {
    "runs": "run_uuid, name, source_type, source_name, user_id, status, start_time, end_time, lifecycle_stage, "
    "artifact_uri, experiment_id",
    "tags": "run_uuid, key, value",
    "params": "run_uuid, key, value",
    "latest_metrics": "run_uuid, key, value, timestamp, step, is_nan",
    "metrics": "run_uuid, key, value, timestamp, step, is_nan",
}


def main(argv: Sequence[str]) -> int:
    """Makes the store, then makes its report in a fresh process and prints what that took."""
    if argv and argv[0] == "--read":
        print(json.dumps(_read(argv[1], Path(argv[2]))))
        return 0
    sizes = dict(DEFAULTS)
    for word in argv:
        name, _, value = word.partition("=")
        if name not in sizes or not value.isdigit() or not int(value):
            raise ReportError(f"'{word}': give {', '.join(f'{key}=N' for key in sizes)}")
        sizes[name] = int(value)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        uri = fill(Path(folder), **sizes)
        size = (Path(folder) / "mlflow.db").stat().st_size / 2**20
        print(
            f"{sizes['runs']} runs of {sizes['points']} points: {size:.0f} MiB made in {_since(begin):.1f} s",
            flush=True,
        )
        line = [sys.executable, "-m", "analysis.bench", "--read", uri, str(Path(folder) / "results")]
        found = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for name, seconds, peak in found:
        print(f"{name:24s}{seconds:8.2f} s   peak {peak:6.0f} MiB")
    return 0


def _read(uri: str, out: Path) -> list[tuple[str, float, float]]:
    """Each part of a report with its seconds and the process's peak memory after it."""
    quiet()
    begin = time.monotonic()
    from analysis.curves import curve_figure
    from analysis.figures import score_figure
    from analysis.load import load
    from analysis.report import page, write
    from analysis.store import open_store

    client = open_store(uri)
    rows = [("imports, opening", _since(begin), _peak())]

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        rows.append((name, _since(start), _peak()))
        return result

    results = timed("load", lambda: load(client, STUDY))
    timed("table, verdicts", lambda: page(results))
    timed("curves", lambda: curve_figure(results))
    timed("score figure", lambda: score_figure(results))
    timed("whole report, again", lambda: write(results, out))
    return rows


def fill(root: Path, runs: int, points: int, arms: int) -> str:
    """Makes a store under `root` with one launch of `runs` finished trials; returns its URI."""
    from mlflow import MlflowClient

    quiet()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(f"microdit/{STUDY}", (root / "artifacts").as_uri())
    tags = {"microdit.role": "study", "microdit.study": STUDY, "microdit.scale": "demo"}
    parent = client.create_run(experiment, tags=tags).info.run_id
    settings = settings_of(min(arms, runs))
    seeds = -(-runs // len(settings))
    (root / "study.yaml").write_text(yaml.safe_dump(_study(settings, seeds), sort_keys=False))
    client.log_artifact(parent, str(root / "study.yaml"))
    places = [(arm, seed) for seed in range(seeds) for arm in settings][:runs]
    with sqlite3.connect(root / "mlflow.db") as database:
        database.execute("PRAGMA synchronous=OFF")
        for start in range(0, runs, BATCH):
            rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in INSERTS}
            for number, (arm, seed) in enumerate(places[start : start + BATCH], start):
                trial = _Trial(number, arm, seed, settings[arm], root / "artifacts", int(experiment), parent)
                trial.write(rows, points)
            for table, names in INSERTS.items():
                marks = ", ".join("?" * (names.count(",") + 1))
                database.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows[table])
    database.close()
    return uri


def settings_of(arms: int) -> dict[str, dict[str, Any]]:
    """Arms by name: none, then naive and deferred masking at rising ratios."""
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
    """The rows and the config.yaml of one finished trial."""

    def __init__(
        self, number: int, arm: str, seed: int, settings: dict[str, Any], root: Path, experiment: int, parent: str
    ) -> None:
        self.id, self.arm, self.seed, self.settings = f"{number:032x}", arm, seed, settings
        self.number, self.root, self.experiment, self.parent = number, root, experiment, parent

    def write(self, rows: dict[str, list[tuple[Any, ...]]], points: int) -> None:
        start = BEGIN + 1000 * self.number
        artifacts = self.root / self.id / "artifacts"
        name = f"{self.arm}/seed{self.seed}"
        place = (start, start + 900, "active", artifacts.as_uri(), self.experiment)
        rows["runs"].append((self.id, name, "LOCAL", "microdit-sweep", "bench", "FINISHED", *place))
        rows["tags"] += [(self.id, key, value) for key, value in self._tags(name).items()]
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

    def _tags(self, name: str) -> dict[str, str]:
        own = {"role": "trial", "study": STUDY, "scale": "demo", "arm": self.arm, "trial_key": self.id[-16:]}
        own |= {"data_fingerprint": "f" * 64, "feature_net": "efficientnet-lite0@0a1b2c3d+score-clip@4e5f6a7b"}
        own |= {"samples": "256", "device": "cpu", "git_commit": "0123456789abcdef", "git_dirty": "false"}
        own |= {"training.steps": "1400", "training.batch_size": "16"}
        own |= {"command": "python -m analysis.bench", "host": "bench", "log": f"runs/{name}/log.txt"}
        return {f"microdit.{key}": value for key, value in own.items()} | {
            "mlflow.parentRunId": self.parent,
            "mlflow.runName": name,
            "mlflow.user": "bench",
        }

    def _metrics(self, points: int) -> Iterator[tuple[str, int, float]]:
        rng = random.Random(self.number)
        level = float(self.settings["model.masking.ratio"])
        for name in SCORES:
            yield f"final/{name}", 0, 100 + 10 * level + rng.gauss(0, 1) if "floor" not in name else 50.0
        yield from self._constants()
        for step in range(1, points + 1):
            for name in CURVES:
                yield name, step, 0.3 + level / 10 + 1 / step + 0.02 * rng.random()

    @staticmethod
    def _constants() -> Iterable[tuple[str, int, float]]:
        counts = {"final/samples": 256.0, "final/reference_images": 1024.0}
        return [(name, 0, value) for name, value in (counts | {f"cost/{name}": 1e6 for name in COSTS}).items()]


def _since(begin: float) -> float:
    return time.monotonic() - begin


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
