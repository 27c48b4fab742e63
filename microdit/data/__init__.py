"""Provide captioned images and the cache of their features.

The images are the embedded emoji scenes or the user's own folder.
"""
