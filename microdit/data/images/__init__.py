"""Read images as correct sRGB pixels, or raise an error that names the file."""
