"""Provide sources of images to encode, one module per kind.

`registry.py` chooses by the command-line word.
"""
