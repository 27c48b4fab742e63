"""Representation alignment (REPA, arXiv 2410.06940): hidden tokens learn to tell what a frozen network sees."""
