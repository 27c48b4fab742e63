"""Several processes of one run, as torchrun starts them: which one speaks, and which one failed first.

Everything here also holds for a process alone. torchrun names each process by its rank in the environment.
"""

from __future__ import annotations

import os

RANK = "RANK"  # set by torchrun; torch itself is imported only where it is: a command that fails early stays quick
FAILED = "microdit/failed"


def is_main() -> bool:
    """Whether this process is the one that writes files and talks."""
    return int(os.environ.get(RANK, "0")) == 0


def world_size() -> int:
    """How many processes share this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if RANK in os.environ else 1


def should_report_error() -> bool:
    """Whether this process has to say what went wrong: true once among all of the run, in the first that asks.

    One process' error takes the others down with it, in the middle of what they exchange; theirs are consequences.
    """
    if RANK not in os.environ:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return is_main()  # nothing is shared yet, so all fail alike
    try:
        store = dist.distributed_c10d._get_default_store()  # where the processes met; torch has no public name for it
        return store.add(FAILED, 1) == 1
    except RuntimeError:
        return False  # the store has gone with the process that failed first


def destroy_process_group() -> None:
    """Ends what the processes exchange; call it at the end of a command that went well."""
    if RANK not in os.environ:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
