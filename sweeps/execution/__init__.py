"""Launching workers, running trials and reporting their progress."""
