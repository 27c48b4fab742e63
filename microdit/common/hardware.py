"""What a run is computed on and with: another processor or release of torch may change a figure's last digits."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere `platform` knows what there is to know


def device_name(device: torch.device) -> str:
    """The GPU's product name, or `cpu (AMD EPYC)`: the processor's, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_name() if device.type == "cpu" else ""
    return f"{device.type} ({name})" if name else device.type


@cache
def cpu_name() -> str:
    """The processor's model, '' where nothing tells it."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> str:
    """`python 3.11.7, torch 2.14.1`."""
    return f"python {platform.python_version()}, torch {torch.__version__}"
