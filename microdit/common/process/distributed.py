"""Coordinate the processes of one run, as started by torchrun.

The module decides which process writes, and which one reports an error. torchrun sets each process's rank in the
environment; without it, all functions work for a single process.
"""

from __future__ import annotations

import os

RANK = "RANK"  # set by torchrun; torch is imported only if it is set, so commands that fail early are fast
FAILED = "microdit/failed"


def is_main() -> bool:
    """Return whether this process writes files and prints."""
    return int(os.environ.get(RANK, "0")) == 0


def world_size() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if RANK in os.environ else 1


def should_report_error() -> bool:
    """Return whether this process reports an error.

    Only the first process of the run that calls it does. An error in one process makes the others fail in their
    communication, and those errors are mere consequences.
    """
    if RANK not in os.environ:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return is_main()  # no communication yet, so all processes fail alike
    try:
        # The store of the rendezvous; torch has no public name for it.
        store = dist.distributed_c10d._get_default_store()
        return store.add(FAILED, 1) == 1
    except RuntimeError:
        return False  # the store ended with the process that failed first


def destroy_process_group() -> None:
    """End the communication of processes; call it at the end of a successful command."""
    if RANK not in os.environ:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
