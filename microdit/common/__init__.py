"""Helpers that every package may use. They import nothing else of this project, and no torch where it is not needed."""
