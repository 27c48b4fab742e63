"""Scores of generated images: distances to real images, and agreement with captions."""
