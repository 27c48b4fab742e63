"""Read the sources of `microdit data encode`, one module per kind.

`registry.py` chooses the kind by the word on the command line.
"""
