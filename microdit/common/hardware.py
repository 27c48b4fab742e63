"""Describe the hardware and software versions of a run.

Other hardware or versions may change a score's last digits.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Device files of the drivers that torch.cuda uses: NVIDIA's, its Jetson's, AMD's, and that of Windows' Linux.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere `platform` is used


def device_name(device: torch.device) -> str:
    """Return the GPU's product name, or a name such as `cpu (AMD EPYC)`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    name = cpu_name() if device.type == "cpu" else ""
    return f"{device.type} ({name})" if name else device.type


@cache
def cpu_name() -> str:
    """Return the processor's model; "" if unknown."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> str:
    """Return versions such as `python 3.11.7, torch 2.14.1`."""
    import torch

    return f"python {platform.python_version()}, torch {torch.__version__}"


def has_cuda() -> bool:
    """Return whether a CUDA device is visible."""
    import torch

    return torch.cuda.is_available()


def visible_gpus() -> list[str]:
    """Return ids for CUDA_VISIBLE_DEVICES, one per GPU that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES)):
        return []  # without importing PyTorch
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def gpu_memory() -> int:
    """Return the bytes of memory of the current CUDA device."""
    import torch

    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def has_fast_bf16(on_gpu: bool) -> bool:
    """Return whether the device multiplies bf16 matrices faster than fp32 ones.

    Without instructions for it, a CPU emulates them many times slower.
    """
    import torch

    if on_gpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def can_compile(on_gpu: bool) -> bool:
    """Return whether torch.compile has what it needs.

    That is Triton for a GPU, and a C++ compiler for a CPU.
    """
    if on_gpu:
        return importlib.util.find_spec("triton") is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def prepare_device(device: torch.device, threads: int) -> None:
    """Set up this process for computations on a device.

    On a GPU, float32 matrices are multiplied by tensor cores, in TF32, whose mantissa has 10 bits. The environment
    variable NVIDIA_TF32_OVERRIDE=0 turns that off.

    Args:
        device: where networks run.
        threads: number of threads on a CPU.
    """
    import torch

    if device.type == "cpu":
        torch.set_num_threads(threads)
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")
