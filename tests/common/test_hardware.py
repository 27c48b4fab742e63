"""Test the hardware facts that a run records."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from microdit.common import hardware
from microdit.config.schema import Config
from microdit.pipeline.run_logger import NullLogger, RunFact
from microdit.pipeline.train_and_evaluate import run


class Kept(NullLogger):
    facts: dict[str, RunFact]

    def start(self, config: Config, facts: dict[str, RunFact]) -> None:  # type: ignore[override]
        self.facts = dict(facts)


def test_a_run_records_its_processor_and_versions(smoke_config: Config, tmp_path: Path) -> None:
    record = Kept()
    run(smoke_config, record)
    assert str(record.facts["device"]).startswith("cpu")
    assert record.facts["versions"] == f"python {platform.python_version()}, torch {torch.__version__}"
    json.dumps(record.facts)  # facts are only words and numbers


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC: 9\nmodel name\t: AMD EPYC: 9\n", "cpu (AMD EPYC: 9)"),
        ("", None),  # a processor without a model name
    ],
)
def test_the_processor_is_named_if_known(
    text: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    hardware.cpu_name.cache_clear()
    try:
        assert hardware.device_name(torch.device("cpu")) == (
            name or f"cpu ({platform.processor() or platform.machine()})"
        )
    finally:
        hardware.cpu_name.cache_clear()


def test_tf32_is_allowed_on_a_gpu_and_threads_are_set_on_a_cpu():
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_float32_matmul_precision("highest")
        hardware.prepare_device(torch.device("cpu"), threads + 1)
        assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("highest", threads + 1)
        hardware.prepare_device(torch.device("cuda"), 1)
        assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("high", threads + 1)
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
