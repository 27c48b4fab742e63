"""Provide the dataset `folder`: a user's own captioned images."""
