"""A run's reports into MLflow: metrics in batches, pictures as image steps, settings as parameters and config.yaml."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from microdit.config import Config
from microdit.training.recorder import Fact
from sweeps.provenance import provenance

FLUSH_SECONDS = 5.0  # one by one, sqlite takes 25 ms a metric; in batches, a hundredth of that
FLUSH_COUNT = 900  # MLflow takes 1000 metrics a batch
RETRIES = 6  # a locked or absent store is tried again for about a minute

log = logging.getLogger(__name__)


class MlflowRecorder:
    """Implements `microdit`'s Recorder over one MLflow run, new or resumed.

    Args:
        uri, experiment_id: where. run_id: a run to go on with, or None for a new one.
        name, tags, params: of a new run; `params` are the settings worth a column, the seed included.
        on_metrics: also told of every metric, for a progress display.
    """

    def __init__(
        self,
        uri: str,
        experiment_id: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        command: str,
        run_id: str | None = None,
        on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        self._client = mlflow.MlflowClient(uri)
        self._experiment_id = experiment_id
        self._name, self._tags, self._params = name, dict(tags), dict(params)
        self._provenance = provenance(command)
        self._on_metrics = on_metrics
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()
        self._monitor: Any = None
        self._seen = 0  # metrics up to this step are there already, from before an interruption
        self.run_id = run_id or ""

    def open(self) -> str:
        """Makes the run, or wakes the one to go on with; returns its id."""
        if self.run_id:
            self._seen = max((m.step for m in self._history("train/loss")), default=0)
            self._client.set_terminated(self.run_id, "RUNNING")
        else:
            tags = self._tags | self._provenance.tags
            self.run_id = self._client.create_run(self._experiment_id, tags=tags, run_name=self._name).info.run_id
        return self.run_id

    def start(self, config: Config, facts: Mapping[str, Fact]) -> None:
        from mlflow.entities import Dataset, DatasetInput, Param

        if not self.run_id:
            self.open()
        params = [Param(name, str(value)) for name, value in self._params.items()]
        self._retry(lambda: self._client.log_batch(self.run_id, params=params))
        for name in ("data_fingerprint", "feature_net", "device"):
            self._client.set_tag(self.run_id, f"microdit.{name}", str(facts[name]))
        self._client.set_tag(self.run_id, "microdit.samples", str(config.evaluation.samples))
        self._client.set_tag(self.run_id, "microdit.output_dir", str(Path(config.output_dir).resolve()))
        source = json.dumps({"name": config.data.name, "path": config.data.path})
        data = Dataset(config.data.name, str(facts["data_fingerprint"]), "local", source)
        self._retry(lambda: self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [])]))
        self.artifact(Path(config.output_dir) / "config.yaml")
        if self._provenance.diff:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "uncommitted.diff"
                path.write_text(self._provenance.diff, encoding="utf-8")
                self.artifact(path)
        self.metrics(0, {"cost/gflops_per_image": float(facts["gflops_per_image"])})
        self._start_monitor()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if self._on_metrics is not None:
            self._on_metrics(step, values)
        if 0 < step <= self._seen and "train/loss" in values:
            return  # the steps between the last checkpoint and the interruption, done again with the same result
        now = int(time.time() * 1000)
        self._buffer += [Metric(name, float(value), now, step) for name, value in values.items()]
        if len(self._buffer) >= FLUSH_COUNT or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._retry(lambda: self._client.log_image(self.run_id, image, key=name, step=step, synchronous=True))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._retry(lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def finish(self, status: str) -> None:
        if not self.run_id:
            return
        self.flush()
        if self._monitor is not None:
            self._monitor.finish()
        self._retry(lambda: self._client.set_terminated(self.run_id, status))

    def fail(self, kind: str, text: str, trace: str, log_path: str) -> None:
        """Records why a trial failed, on the run itself."""
        if not self.run_id:
            self.open()
        tags = {"microdit.error": f"{kind}: {text}"[:4000], "microdit.traceback": trace[-4000:], "microdit.log": log_path}
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)
        self.finish("FAILED")

    def flush(self) -> None:
        """Writes what is buffered."""
        batch, self._buffer = self._buffer, []
        self._flushed = time.monotonic()
        for start in range(0, len(batch), 1000):
            part = batch[start : start + 1000]
            self._retry(lambda part=part: self._client.log_batch(self.run_id, metrics=part))  # type: ignore[misc]

    def _history(self, name: str) -> list[Any]:
        return list(self._client.get_metric_history(self.run_id, name))

    def _start_monitor(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(self.run_id, sampling_interval=10, samples_before_logging=1)
            self._monitor.start()
        except Exception as error:  # a machine without the probes still trains
            log.info("no system metrics: %s", error)

    @staticmethod
    def _retry(call: Callable[[], Any]) -> Any:
        for attempt in range(RETRIES):
            try:
                return call()
            except Exception:  # sqlite under another worker's lock, a server that restarts
                if attempt == RETRIES - 1:
                    raise
                time.sleep(0.5 * 2**attempt)
        return None
