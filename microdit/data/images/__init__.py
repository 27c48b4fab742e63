"""The image reader: correct sRGB pixels, or an error that names the file."""
