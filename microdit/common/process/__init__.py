"""Handle processes and terminals.

The modules cover identity, signals, distributed ranks, output and waiting messages.
"""
