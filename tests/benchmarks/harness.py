"""Time variants of the same work, interleaved in one process, and compare them with a matmul peak."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microdit.common.files.atomic import write_text
from microdit.common.hardware import device_name, versions
from microdit.common.tables import text_table

PEAK_SIZES = (1024, 2048, 4096, 8192)  # sides of the square matrices that the peak is measured with
PEAK_SECONDS = 0.5  # per size


@dataclass(frozen=True)
class Variant:
    """One way to do the work of a case."""

    suite: str
    case: str
    name: str
    call: Callable[[], object]
    items: int = 1  # images, trials or files per call
    flops: float = 0.0  # per call


@dataclass(frozen=True)
class Result:
    """Times of one variant; seconds are per call."""

    suite: str
    case: str
    variant: str
    median_s: float
    low_s: float  # first quartile
    high_s: float  # third quartile
    calls: int
    ratio: float  # median over rounds of the first variant's time divided by this one's
    items_per_s: float
    gflops: float | None  # achieved GFLOP/s
    share_of_peak: float | None  # of the measured matmul peak in the same precision
    peak_memory_mb: float | None  # allocated on the GPU; None on a CPU


def now(device: torch.device) -> float:
    """Return the time once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of square matrix products of `dtype`."""
    best = 0.0
    for side in PEAK_SIZES if device.type == "cuda" else PEAK_SIZES[:1]:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        a @ b
        begin, calls = now(device), 0
        while (spent := now(device) - begin) < PEAK_SECONDS:
            for _ in range(10):
                a @ b
            calls += 10
        best = max(best, 2 * side**3 * calls / spent)
    return best


def interleaved(
    variants: Sequence[Variant], rounds: int, device: torch.device, peak: float | None = None, warmup: int = 2
) -> list[Result]:
    """Time all variants of a case, taking turns, so that other load slows all of them alike.

    Args:
        variants: the first is what the others' ratios compare with.
        rounds: timed calls per variant.
        device: where they run.
        peak: FLOP/s that `share_of_peak` refers to.
        warmup: calls before the timed ones.
    """
    seconds: list[list[float]] = [[] for _ in variants]
    memory: list[float | None] = [None for _ in variants]
    for turn in range(warmup + rounds):
        order = range(len(variants)) if turn % 2 == 0 else reversed(range(len(variants)))
        for index in order:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            begin = now(device)
            variants[index].call()
            spent = now(device) - begin
            if turn >= warmup:
                seconds[index].append(spent)
                if device.type == "cuda":
                    memory[index] = torch.cuda.max_memory_allocated(device) / 1e6
    return [_result(v, own, seconds[0], peak, m) for v, own, m in zip(variants, seconds, memory, strict=True)]


def _result(
    variant: Variant, seconds: Sequence[float], first: Sequence[float], peak: float | None, memory: float | None
) -> Result:
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    speed = variant.flops / median if variant.flops else None
    return Result(
        variant.suite,
        variant.case,
        variant.name,
        median,
        low,
        high,
        len(seconds),
        statistics.median(a / b for a, b in zip(first, seconds, strict=True)),
        variant.items / median,
        None if speed is None else speed / 1e9,
        None if speed is None or peak is None else speed / peak,
        memory,
    )


def timed_command(suite: str, case: str, command: Sequence[str], repeats: int) -> Result:
    """Return the CPU seconds (user and system) of a command, including its children.

    Raises:
        CalledProcessError: if it fails.
    """
    seconds = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    variant = Variant(suite, case, "CPU seconds", lambda: None)
    return _result(variant, seconds, seconds, None, None)


def timed_lines(suite: str, command: Sequence[str], signs: Mapping[str, str], repeats: int) -> list[Result]:
    """Return the seconds (elapsed) until a command prints certain lines; it is ended after the last one.

    Args:
        suite: name of the suite.
        command: run in an empty folder.
        signs: a part of each line, by the name of its case, in the order of printing.
        repeats: number of runs.

    Raises:
        RuntimeError: if the command ends before it prints all lines.
    """
    seconds: dict[str, list[float]] = {case: [] for case in signs}
    for _ in range(repeats):
        left = list(signs)
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if signs[left[0]] in line:
                        seconds[left.pop(0)].append(time.perf_counter() - begin)
                    if not left:
                        break
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if left:
            raise RuntimeError(f"{' '.join(command)} did not print '{signs[left[0]]}'")
    return [
        _result(Variant(suite, case, "elapsed seconds", lambda: None), times, times, None, None)
        for case, times in seconds.items()
    ]


def environment(device: torch.device) -> dict[str, Any]:
    """Return the facts that a benchmark's numbers depend on."""
    return {
        "device": device_name(device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "platform": platform.platform(),
        "command": " ".join(["python", *sys.argv]),
    }


def report(results: Sequence[Result]) -> str:
    """Return a table of results."""
    rows = [["suite", "case", "variant", "median ms", "quartiles", "ratio", "items/s", "GFLOP/s", "of peak", "MB"]]
    for r in results:
        rows.append(
            [
                r.suite,
                r.case,
                r.variant,
                f"{1000 * r.median_s:.1f}",
                f"{1000 * r.low_s:.1f}-{1000 * r.high_s:.1f}",
                f"{r.ratio:.2f}",
                f"{r.items_per_s:.1f}",
                "" if r.gflops is None else f"{r.gflops:.1f}",
                "" if r.share_of_peak is None else f"{r.share_of_peak:.0%}",
                "" if r.peak_memory_mb is None else f"{r.peak_memory_mb:.0f}",
            ]
        )
    return text_table(rows, wide=True)


def save(path: Path, facts: dict[str, Any], results: Sequence[Result]) -> None:
    """Write facts and results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(result) for result in results]
    write_text(path, json.dumps({**facts, "results": rows}, indent=1) + "\n")


def compared(results: Sequence[Result], baseline: Path) -> str:
    """Return a table of times against those of a stored file; only meaningful on the same machine."""
    stored = json.loads(baseline.read_text(encoding="utf-8"))
    before = {(row["suite"], row["case"], row["variant"]): row["median_s"] for row in stored["results"]}
    rows = [["suite", "case", "variant", "baseline ms", "now ms", "speed"]]
    for r in results:
        old = before.get((r.suite, r.case, r.variant))
        if old is not None:
            rows.append([r.suite, r.case, r.variant, f"{1000 * old:.1f}", f"{1000 * r.median_s:.1f}"])
            rows[-1].append(f"{old / r.median_s:.2f}x")
    return f"against {baseline.name} ({stored['device']}):\n{text_table(rows, wide=True)}"
