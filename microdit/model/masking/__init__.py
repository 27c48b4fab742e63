"""Masking methods: which patches the backbone sees, and which the loss counts."""
