"""`folder`: a user's own captioned images."""
