"""Serve MLflow's web pages of a store, and print links to the studies' runs."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import quote

from microdit.common.contract import MlflowTag, Tag, final_metric
from microdit.common.errors import ConfigError
from microdit.common.stores.run_search import our_experiments
from microdit.common.stores.secrets import masked
from sweeps.tracking.mlflow_store import Store
from sweeps.tracking.mlflow_views import ARMS_VIEW, TRIALS

HOST = "127.0.0.1"
# MLflow opens its pages for language-model traces, and hides the trials of a launch while runs are sorted by date. So
# each link names the training pages and the view of the study's arms, or sorts by the study's own metric.
WORKFLOW = "workflowType=machine_learning"


def serve(uri: str, root: Path, port: int) -> int:
    """Print links to the studies, then run MLflow's web server in this process.

    If `uri` is a server's address, the links are printed and nothing is started.

    Args:
        uri: URI of the MLflow store.
        root: the folder of the store's artifacts.
        port: port to serve at, on this machine only.

    Returns:
        0; if a server is started, the function does not return.

    Raises:
        ConfigError: if the port is taken.
    """
    if uri.startswith(("http://", "https://")):
        print("\n".join(links(Store(uri, root), uri.rstrip("/"))))
        return 0
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ConfigError(f"port {port} is taken (another microdit-sweep ui?); give another, as port={port + 1}")
    print("\n".join(links(Store(uri, root), f"http://{HOST}:{port}")), flush=True)
    print(f"shows {masked(uri)} until Ctrl-C", flush=True)
    server = [sys.executable, "-W", "ignore", "-m", "mlflow", "ui", "--host", HOST, "--port", str(port)]
    server += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    quieter = {"MLFLOW_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}  # otherwise the links scroll away
    store = {"MLFLOW_BACKEND_STORE_URI": uri}  # not on the command line, which all users of the machine can read
    os.execve(sys.executable, server, os.environ | quieter | store)


def links(store: Store, address: str) -> list[str]:
    """Return links to all experiments, and to each study's runs and newest launch.

    The launch's page shows the question, the command and the results.

    Args:
        store: the store.
        address: URL of the server, without a final slash.
    """
    found = our_experiments(store.client)
    width = max([len(experiment.name) for experiment in found], default=0)
    lines = [f"{'all'.ljust(width)}  {address}/#/experiments?{WORKFLOW}"]
    for experiment in found:
        runs = f"{address}/#/experiments/{experiment.experiment_id}/runs"
        if f"{MlflowTag.SHARED_VIEW_PREFIX}{ARMS_VIEW}" in experiment.tags:  # MLflow fails on missing views
            how = f"compareRunsMode=CHART&viewStateShareKey={ARMS_VIEW}"  # no filter or order beside a view
        else:
            metric = experiment.tags.get(Tag.PRIMARY, "fd")
            rising = str(experiment.tags.get(Tag.DIRECTION, "minimize") == "minimize").lower()
            order = f"orderByKey={quote(f'metrics.`{final_metric(metric)}`', safe='')}&orderByAsc={rising}"
            how = f"searchFilter={quote(TRIALS, safe='')}&{order}&compareRunsMode=CHART"
        lines.append(f"{experiment.name.ljust(width)}  {runs}?{WORKFLOW}&{how}")
        newest = store.newest_launch(experiment.experiment_id)
        if newest is not None:
            lines.append(f"{'  its newest launch'.ljust(width)}  {runs}/{newest.info.run_id}?{WORKFLOW}")
    return lines
