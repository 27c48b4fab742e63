"""List the signals that ask a process to stop."""

from __future__ import annotations

import signal

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a preempted job, a closed terminal


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop.

    Signals that were ignored at its start (nohup, `&`) are not among them.
    """
    known = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
