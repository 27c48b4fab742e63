"""Masking methods: which patches the backbone sees, and how the loss deals with the others."""
