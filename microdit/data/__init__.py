"""Captioned images: the embedded emoji scenes, the user's own folder, and the cache of their features."""
