"""Align hidden tokens with a frozen network's features (REPA, arXiv 2410.06940)."""
