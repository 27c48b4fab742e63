"""Encoded images and captions: their file format, its reader and writer, and the dataset `latents`."""
