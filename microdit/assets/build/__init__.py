"""Scripts that trained the bundled networks."""
