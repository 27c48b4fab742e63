"""Where images to encode come from: one file a kind, `choose.py` tells them apart."""
