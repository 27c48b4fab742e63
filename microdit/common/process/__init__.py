"""Processes and their terminals: identity, signals, distributed ranks, output and waiting messages."""
