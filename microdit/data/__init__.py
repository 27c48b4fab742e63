"""Provide datasets of captioned images, and the cache of their latents and caption features."""
