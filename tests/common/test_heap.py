"""Test that freed memory stays with the process where the C library allows it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from microdit.common.process.heap import keep_freed_memory
assert keep_freed_memory() and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(20):
        torch.ones(1 << 20).add_(1)  # 4 MiB, which glibc maps and unmaps by default
work()
before = faults()
work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_a_step_reuses_the_memory_of_the_step_before():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # of the 20 * 1024 pages that would be mapped again
