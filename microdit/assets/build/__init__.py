"""Train the bundled networks."""
