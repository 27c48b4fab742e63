"""Identify a process across machines, containers and reboots.

The module can also prove that a process of this machine has ended.

An identity is the text `HOST+PLACE/PID/START`. PLACE is a digest of machine id, boot id and the process's PID and time
namespaces: a PID is meaningful only to a reader with the same PLACE. START is the process's start in clock ticks since
boot, which changes of the wall clock do not affect. Host names are for people: containers and cloned machines share
them.
"""

from __future__ import annotations

import os
import platform
import sys
import uuid
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
STATE_FIELD, START_FIELD = 0, 19  # of /proc/PID/stat, counted behind the command name
ENDED_STATES = ("Z", "X")


def this_process() -> str:
    """Return the identity of the calling process."""
    return _own_identity(os.getpid())


@lru_cache(maxsize=1)  # a forked child has another PID
def _own_identity(pid: int) -> str:
    return identity_of(pid)


def identity_of(pid: int) -> str:
    """Return the identity of a process of this machine and PID namespace.

    Args:
        pid: of the process.
    """
    place, start = _place(), _start(pid) or ""
    return f"{platform.node()}{f'+{place}' if place and start else ''}/{pid}/{start}"


def is_alive(identity: str) -> bool:
    """Return whether a process provably runs in this PID namespace.

    Args:
        identity: of the process.
    """
    pid, start = _here(identity)
    return pid is not None and _start(pid) == start


def is_gone(identity: str) -> bool:
    """Return whether a process has provably ended; False if that is unknown here.

    Identities without a PLACE were written by earlier versions, or on a system that hides its namespaces.

    Args:
        identity: of the process.
    """
    pid, start = _here(identity)
    return pid is not None and _start(pid) not in (start, None)


def _here(identity: str) -> tuple[int | None, str]:
    """Return PID and start of `identity`; no PID if it is not from this PLACE."""
    host, _, rest = identity.partition("/")
    pid, _, start = rest.partition("/")
    place = host.rpartition("+")[2] if "+" in host else ""
    known = place and place == _place() and start and pid.isdecimal() and len(pid) < 20
    return (int(pid) if known else None), start


def pid_of(identity: str) -> int:
    """Return the PID in `identity`."""
    return int(identity.split("/")[1])


def readable(identity: str) -> str:
    """Return `HOST/PID` for people."""
    host, _, rest = identity.partition("/")
    return f"{host.rpartition('+')[0] or host}/{rest.partition('/')[0]}"


def _place() -> str:
    """Return a digest of everything that a PID's meaning depends on.

    It is empty if part of it is unknown.
    """
    machine = next((text for path in MACHINE_IDS if (text := _text(path))), "")
    if sys.platform != "linux":
        return _digest(platform.node(), machine, str(uuid.getnode()))
    boot, pids = _text(BOOT_ID), _link("/proc/self/ns/pid")
    if not boot or not pids or _link("/proc/self") != str(os.getpid()):  # /proc may show another PID namespace
        return ""
    return _digest(platform.node(), machine, boot, pids, _link("/proc/self/ns/time"))


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def _start(pid: int) -> str | None:
    """Return the start of process `pid` of this PLACE.

    It is empty if the process has ended, and None if that is hidden.
    """
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
        except psutil.NoSuchProcess:
            return ""
        except psutil.Error:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[STATE_FIELD] in ENDED_STATES else fields[START_FIELD]
    except (OSError, IndexError):
        return "" if _is_free(pid) else None


def _is_free(pid: int) -> bool:
    """Return whether no process has this PID; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
