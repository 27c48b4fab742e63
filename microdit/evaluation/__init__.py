"""Scores of generated images: distances to real ones and agreement with captions."""
