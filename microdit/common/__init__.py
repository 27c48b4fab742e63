"""Provide helpers for all packages.

They import nothing else of this project, and torch only if needed.
"""
