"""Log a run to MLflow: metrics in batches, samples as image steps, settings as params and config.yaml."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microdit.common.contract import (
    CONFIG_FILE,
    GFLOPS_PER_IMAGE,
    SINGLE_VALUE_PREFIXES,
    TRAIN_LOSS,
    VAL_LOSS_CURVE,
    Status,
    Tag,
)
from microdit.common.errors import DataError
from microdit.common.finite import require_sound
from microdit.common.stores.secrets import masked, without_known
from microdit.config.identity import ALGORITHM
from microdit.config.schema import Config
from microdit.pipeline.run_logger import RunFact, RunLogger
from sweeps.tracking.provenance import provenance, source_tags
from sweeps.tracking.retry import RetryingClient

FLUSH_SECONDS = 5.0  # between batches; on sqlite a single metric takes 25 ms, a batched one 1/100 of that
MAX_BATCH_METRICS = 1000  # MLflow's limit
SYSTEM_SECONDS = 10.0  # between two system metrics
FACT_TAGS = ("data_fingerprint", "feature_net", "device", "versions")
PLANNED_FACTS = ("data_fingerprint", "feature_net")  # facts known before a run starts
ERROR_TAGS = (Tag.ERROR, Tag.TRACEBACK)
CURVES = (TRAIN_LOSS, VAL_LOSS_CURVE)  # metrics that a resumed run might log twice
BUDGET_SETTINGS = {Tag.TRAINING_STEPS: "steps", Tag.TRAINING_BATCH_SIZE: "batch_size"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """Name, place, tags and params of a new run.

    `params` are the settings that vary, and the random seed.
    """

    experiment_id: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    command: str


class MlflowLogger(RunLogger):
    """Log to one MLflow run, new or resumed.

    Args:
        uri: URI of the MLflow store.
        spec: description of the run.
        run_id: the run to resume, or None for a new one.
        on_metrics: called with the step and values of every metric, for a progress display.
    """

    def __init__(
        self,
        uri: str,
        spec: RunSpec,
        run_id: str | None = None,
        on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        import mlflow

        self._uri = uri
        self._client: Any = RetryingClient(mlflow.MlflowClient(uri))
        self._spec = spec
        self._provenance = provenance(spec.command)
        self._on_metrics = on_metrics
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()
        self._monitor: Any = None
        self._seen: dict[str, int] = {}  # last step of each curve logged before an interruption
        self._open = False
        self.run_id = run_id or ""

    def open(self) -> str:
        """Create the run, or reopen the one to resume.

        Returns:
            The run's id.
        """
        tags = dict(self._spec.tags) | self._provenance.tags | {Tag.ALGORITHM: str(ALGORITHM)}
        if self.run_id:
            for name in CURVES:
                points = self._client.get_metric_history(self.run_id, name)
                self._seen[name] = max((point.step for point in points), default=0)
            self._client.update_run(self.run_id, status=Status.RUNNING)
            self._log_batch(tags=tags)
            present = self._client.get_run(self.run_id).data.tags
            for name in set(ERROR_TAGS) & set(present):  # of the previous attempt
                self._client.delete_tag(self.run_id, name)
        else:
            shown = {name: masked(value) for name, value in (source_tags() | tags).items()}
            run = self._client.create_run(self._spec.experiment_id, tags=shown, run_name=self._spec.name)
            self.run_id = run.info.run_id
        self._open = True
        return self.run_id

    def start(self, config: Config, facts: Mapping[str, RunFact]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        if not self._open:
            self.open()
        self._check_planned(facts)
        tags = {Tag.PREFIX + name: str(facts[name]) for name in FACT_TAGS}
        tags[Tag.SAMPLES] = str(config.evaluation.samples)
        # The budget is also in config.yaml, but reading many runs would need that file of each.
        tags |= {tag: str(getattr(config.training, name)) for tag, name in BUDGET_SETTINGS.items()}
        tags[Tag.OUTPUT_DIR] = str(Path(config.output_dir).resolve())
        self._log_batch(tags=tags, params=self._spec.params)
        source = json.dumps({"name": config.data.name, "path": masked(config.data.path or "")})
        data = Dataset(config.data.name, str(facts["data_fingerprint"]), "local", source)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(data, [])])
        self.artifact(Path(config.output_dir) / CONFIG_FILE)
        if self._provenance.diff:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "uncommitted.diff"
                path.write_text(without_known(self._provenance.diff), encoding="utf-8")
                self.artifact(path)
        self.metrics(0, {GFLOPS_PER_IMAGE: float(facts["gflops_per_image"])})
        self._start_monitor()

    def _check_planned(self, facts: Mapping[str, RunFact]) -> None:
        """Raise DataError if data, prompts or scoring networks have changed since the run was planned."""
        for name in PLANNED_FACTS:
            planned = self._spec.tags.get(Tag.PREFIX + name)
            if planned and planned != str(facts[name]):
                what = "the data" if name == "data_fingerprint" else "a scoring network or the prompts"
                raise DataError(
                    f"{what} of {self._spec.name} changed after this run was planned ({planned} then, {facts[name]} "
                    "now); repeat the command to start a new run"
                )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log values, except steps that a resumed run has logged before.

        Args:
            step: training step.
            values: each metric's value.

        Raises:
            DivergenceError: if a value is not finite; none of the values is logged then.
        """
        # Steps between the last checkpoint and the interruption are repeated with the same result.
        again = any(0 < step <= self._seen.get(name, 0) for name in CURVES if name in values)
        if not again:
            self._keep(step, values)
        if self._on_metrics is not None:
            self._on_metrics(step, values)  # last: it may end the run

    def _keep(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        require_sound(values, f"at step {step}")  # sqlite changes infinity and drops NaN
        now = int(time.time() * 1000)
        for name, value in values.items():
            at = 0 if name.startswith(SINGLE_VALUE_PREFIXES) else step  # MLflow draws bars for metrics at step 0 only
            self._buffer.append(Metric(name, float(value), now, at))
        if len(self._buffer) >= MAX_BATCH_METRICS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        tile_grid = near_square(image)
        self._client.log_image(self.run_id, tile_grid, key=name, step=step, synchronous=True)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def finish(self, status: str) -> None:
        if not self._open:
            return
        self._open = False
        if self._monitor is not None:
            self._monitor.finish()
        self.flush()
        self._client.set_terminated(self.run_id, status)

    def outcome(self, outcome: str) -> None:
        """Tag an ending for which MLflow has no status, such as 'pruned' (status KILLED)."""
        self._log_batch(tags={Tag.OUTCOME: outcome})

    def fail(self, reason: str, trace: str) -> None:
        """End the run as failed and record the reason.

        Args:
            reason: one sentence; at most 4000 characters are kept.
            trace: the traceback, of which the last 4000 characters are kept; may be "".
        """
        if not self.run_id:
            self.open()
        self._log_batch(tags=dict(zip(ERROR_TAGS, (masked(reason)[:4000], masked(trace)[-4000:]), strict=True)))
        self._open = True  # also if the run had been ended already
        self.finish(Status.FAILED)

    def flush(self) -> None:
        """Write the buffered metrics."""
        batch, self._buffer = self._buffer, []
        self._flushed = time.monotonic()
        for start in range(0, len(batch), MAX_BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=batch[start : start + MAX_BATCH_METRICS])

    def _log_batch(self, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        own_tags = [RunTag(name, masked(value)) for name, value in (tags or {}).items()]
        own_params = [Param(name, masked(str(value))) for name, value in (params or {}).items()]
        self._client.log_batch(self.run_id, tags=own_tags, params=own_params)

    def _start_monitor(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(
                self.run_id,
                sampling_interval=SYSTEM_SECONDS,
                samples_before_logging=1,
                resume_logging=any(self._seen.values()),
                tracking_uri=self._uri,
            )
            self._monitor.start()
        except Exception as error:  # training works without the probes
            log.info("no system metrics: %s", error)


def near_square(image: np.ndarray) -> np.ndarray:
    """Rearrange a strip of square tiles for MLflow's grid of square cells.

    Args:
        image: a strip (H, N H, 3) of N tiles.

    Returns:
        The tiles in ceil(sqrt(N)) columns, filled up with white; a strip of fewer than 4 tiles is returned as it is.
    """
    side, width = image.shape[:2]
    if width % side or width < 4 * side:
        return image
    tiles = image.reshape(side, -1, side, 3).swapaxes(0, 1)  # (N, H, H, 3)
    columns = math.ceil(math.sqrt(len(tiles)))
    blank = np.full((-len(tiles) % columns, side, side, 3), 255, image.dtype)
    rows = np.concatenate([tiles, blank]).reshape(-1, columns, side, side, 3)
    return rows.swapaxes(1, 2).reshape(-1, columns * side, 3)
