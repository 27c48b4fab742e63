"""Define the configuration of a whole run, and its identity."""
