"""Provide the configuration that the tests of alignment share."""

from __future__ import annotations

import dataclasses

import pytest
from aligned_runs import HERE

from microdit.alignment.config import AlignmentConfig
from microdit.config.schema import Config


@pytest.fixture(scope="module")
def colors(smoke_config: Config) -> Config:
    """Return a run of smoke size that aligns with `Colors`, with deferred masking."""
    return dataclasses.replace(smoke_config, plugins=("aligned_runs",), alignment=AlignmentConfig(HERE, weight=0.5))
