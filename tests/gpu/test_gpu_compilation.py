"""Test that the training loop compiles into one graph, without breaks and without recompilation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from changed_config import with_changes
from torch._dynamo.utils import counters

from microdit.config.schema import Config
from sweeps.planning import throughput


@pytest.mark.parametrize("method", ["none", "naive", "deferred"])
def test_training_steps_compile_into_one_graph(
    method: str,
    smoke_config: Config,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[..., None],
):
    changes = {
        "training.device": device.type,
        "training.precision": "bf16",
        "training.compile": True,
        "model.masking.method": method,
        "model.masking.ratio": 0.0 if method == "none" else 0.5,
    }
    if device.type == "cpu":  # a graph is captured the same way, and compiling it would take a minute
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    times = throughput.time_steps(with_changes(smoke_config, changes), seconds=1.0)
    figure("seconds until the first steps have ended", times.first)
    figure("graphs", counters["stats"]["unique_graphs"], at_least=1, at_most=1)
    figure("graph breaks", sum(counters["graph_break"].values()), at_most=0)
    figure("recompilations", sum(counters["recompiles"].values()), at_most=0)
