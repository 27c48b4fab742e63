"""Provide the device of a check, and record its figures.

Every check runs on a CPU in the default suite, at small sizes, and on a GPU with `-m gpu`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

Figure = Callable[..., None]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Return where the check runs; a GPU's memory is empty before and after."""
    found = torch.device(request.param)
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    _empty(found)
    yield found
    _empty(found)


def _empty(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Iterator[Figure]:
    """Return a function that records a figure; a missed target fails the check after all figures are recorded."""
    missed = []

    def record(name: str, value: Any, at_least: float | None = None, at_most: float | None = None) -> None:
        record_property(name, {"value": value, "at_least": at_least, "at_most": at_most})
        # written so that NaN misses every target
        if (at_least is not None and not value >= at_least) or (at_most is not None and not value <= at_most):
            limit = f"at least {at_least:g}" if at_most is None else f"at most {at_most:g}"
            missed.append(f"{name} is {value:.4g}, not {limit}")

    yield record
    assert not missed, "; ".join(missed)


PRECISIONS = ("fp32", "tf32", "bf16")


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Set the precision of fp32 matrix products; `bf16` is autocast, for which a check uses `autocast`."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if request.param == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = request.param != "fp32"
    yield request.param
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
