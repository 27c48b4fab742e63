"""Store encoded images and captions.

The package has the file format, its reader and writer, and the dataset `latents`.
"""
