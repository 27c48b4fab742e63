"""Score generated images: distances to real images, agreement with captions."""
