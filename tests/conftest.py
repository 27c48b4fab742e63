"""Provide fixtures for all tests: a configuration that trains in seconds, and a shared cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from microdit.config.schema import Config
from sweeps.config.hydra_compose import compose_config

torch.set_num_threads(1)

# No law here is about time, and whichever test comes first in a process pays half a second for torch's lazy imports.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of encoded data and reference features, shared by the session's runs.

    MICRODIT_TEST_CACHE names a folder that many sessions share, as mutation runs do.
    """
    shared = os.environ.get("MICRODIT_TEST_CACHE")
    return Path(shared) if shared else tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smoke_config(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the `smoke` scale without scoring."""
    out = tmp_path_factory.mktemp("run")
    return compose_config(["scale=smoke", "evaluation.samples=0", f"cache_dir={cache_dir}", f"output_dir={out}"])
